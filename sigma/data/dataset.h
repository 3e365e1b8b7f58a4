// Data sets: indexed samples with a label and an identity. One reader a file; none ever downloads.
//
// A sample is uint8 [C,Y,X], [C,F,Y,X] for clips, or float32 [L,Z] for latents; all samples of a
// set have one shape. Labels are int64 from 0, -1 for none. Not supported: several labels, text.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "sigma/base/config.h"
#include "sigma/io/images.h"

namespace sigma {

struct DataConfig {
  std::string kind = "fashion";
  std::string split = "train";  // train | test
  std::string root;             // folder of the files; empty: the kind's own place
  std::string images;           // idx: files
  std::string labels;
  int64_t frames = 8;                 // moving_fashion: of a clip
  int64_t pad = 0;                    // zeros added on each side
  int64_t size = 0;                   // folder: side after center_crop; 0 = as they are, all equal
  int64_t channels = 0;               // folder: 0 = as the first image; 1 or 3 converts
  double test_fraction = 0;           // folder without train/ and test/: share held out by hash
  std::string on_bad_image = "stop";  // stop | skip
  int64_t max_pixels = int64_t{1} << 26;
  int64_t threads = 1;
  int64_t prefetch = 4;
  void visit(ConfigVisitor& v);
};

struct DatasetInfo {
  std::string kind;
  std::string description;            // for people: "Fashion-MNIST, 60,000 training images 1x28x28"
  std::vector<int64_t> sample_shape;  // [C,Y,X] or [C,F,Y,X] (uint8), [L,Z] (float32 latents)
  int64_t num_classes = 0;            // 0: no labels
  std::vector<std::string> class_names;
  bool latents = false;
  int64_t skipped = 0;  // bad files passed over (on_bad_image = skip)
};

struct Sample {
  torch::Tensor data;  // uint8 [C,Y,X] or [C,F,Y,X], or float32 [L,Z]
  int64_t label = -1;  // -1: none
  std::string id;      // relative path, else the index
};

/// A bad file found while opening or checking.
struct BadSample {
  std::string id;
  std::string reason;
};

class Dataset {
 public:
  virtual ~Dataset() = default;
  virtual int64_t size() const = 0;
  /// Thread-safe. Errors: kData naming the file.
  virtual Sample get(int64_t index) const = 0;
  virtual const DatasetInfo& info() const = 0;
};

struct Samples {
  torch::Tensor data;    // stacked
  torch::Tensor labels;  // int64 [count]
};
/// Samples [first, first + count), in one thread. Errors: as Dataset::get.
Samples read_samples(const Dataset& data, int64_t first, int64_t count);

/// Opens the data set of `config` (its split). Errors: kData with file, offset, expected, actual;
/// all bad files are listed at once.
std::unique_ptr<Dataset> open_dataset(const DataConfig& config);
/// Whether the test split exists for this kind and configuration.
bool has_test_split(const DataConfig& config);

/// SHA-256 over, in index order: id, NUL, label (i32 LE), SHA-256 of the sample's bytes as get()
/// returns them (padded, cropped).
std::string data_hash(const Dataset& dataset);

struct DataReader {
  std::string kind;
  std::string reads;    // for people
  std::string needs;    // package or files
  bool usable = false;  // with the default settings, on this machine
};
std::vector<DataReader> list_readers();

/// uint8 of any shape -> float32 k / 127.5 - 1.
torch::Tensor to_float(const torch::Tensor& images);
/// float of any shape -> uint8 trunc(clip(x * 127.5 + 128, 0, 255)). Errors: kNonFinite.
torch::Tensor to_bytes(const torch::Tensor& images);
/// Decoded pixels -> uint8 [C,Y,X], and back; a clip [C,F,Y,X] becomes its frames side by side.
/// Errors: kUsage (another dtype or shape).
torch::Tensor from_image(const Image& image);
Image to_image(const torch::Tensor& sample);

}  // namespace sigma
