// What `sigma sample` writes into a PNG: of each image in it, enough to make it again, bit for bit.
//
// Compact ASCII JSON in the chunk that read_provenance() returns: an object for an image, a list of
// objects for a grid. Format 1. Reading is strict: every key is known, present and of its type, none
// comes twice. Torch-free.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "sigma/base/config.h"
#include "sigma/io/images.h"

namespace sigma {

/// Consecutive images of one label: {label, images}.
using LabelRuns = std::vector<std::pair<int64_t, int64_t>>;

struct ImageRecord {
  std::string sigma, git;  // version and commit of the program
  std::string checkpoint;  // SHA-256 of the weights file
  std::string path;  // the checkpoint's folder when the image was made: a hint, not an identity
  std::string run_id;
  std::string tokenizer;  // SHA-256 of the weights that decode latents; empty: none, not written
  std::string method;     // generator.objective.kind
  std::string ema;        // main | none
  int64_t seed = 0;
  int64_t index = 0;             // number of the image: with the seed, the key of its noise
  std::optional<int64_t> label;  // none: not written
  std::string sampler, schedule;
  int64_t steps = 1;
  double rho = 0;
  std::vector<double> mid_eta;
  double guidance = 1;
  std::array<double, 2> guidance_range = {};  // of times
  std::string dtype, device;
  std::string hardware;  // what else the last bits depend on: instruction set and threads, or GPU
  bool deterministic = true;
  int64_t batch_first = 0, batch_count = 0;  // the images of the pass that made this one
  LabelRuns batch_labels;                    // of them; empty: none, not written
  /// Left, top, pixels a pixel: where a grid shows the image. None: it is the whole picture.
  std::optional<std::array<int64_t, 3>> at;
  std::string pixels;  // SHA-256 of the image's bytes, row by row, channels interleaved
};

/// ImageRecord::pixels of an image.
std::string pixels_sha256(const Image& image);

Json to_json(const ImageRecord& record);
/// The text of a chunk. Errors: kData with `name` and the key.
std::vector<ImageRecord> parse_image_records(const std::string& text, const std::string& name);

}  // namespace sigma
