// A tokenizer's run for the commands that look at it: weights of a checkpoint in evaluation, float32,
// and data sets in batches.
#pragma once

#include <torch/types.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "sigma/data/dataset.h"
#include "sigma/io/checkpoint.h"
#include "sigma/tokenizer/tokenizer.h"
#include "sigma/train/config.h"

namespace sigma {

struct TokenizerRun {
  std::filesystem::path folder;
  RunConfig config;
  int64_t step = 0;
  std::string run_id;
  std::string weights_sha256;
  std::vector<int64_t> image_shape;  // [C,Y,X], padding included
  std::shared_ptr<Tokenizer> model;
  torch::Device device = torch::kCPU;
};

struct TokenizerChoice {
  std::string run;           // path, or name under runs/
  std::string ema = "main";  // main | none
  std::string device;        // auto | cpu | cuda
  bool finished = false;     // expects a run that has reached its end: its latents are normalised
};
/// Errors: kUsage (no such run, another task, not finished), kCheckpoint, kDevice.
TokenizerRun open_tokenizer(const TokenizerChoice& choice);

/// A pass of an evaluation.
Context evaluation_context();

struct Codes {
  torch::Tensor latents;  // normalised, float32 [B,L,Z]
  torch::Tensor indices;  // vq: int64 [B,L]; the latents are exactly their codes
};
/// Of uint8 images [B,C,Y,X], on the run's device.
Codes encode_images(const TokenizerRun& run, const torch::Tensor& images);
/// uint8 images [B,C,y,x] on the CPU, without data.pad. Errors: as Tokenizer::decode.
torch::Tensor decode_latents(const TokenizerRun& run, const torch::Tensor& latents,
                             int64_t keep = -1);

/// Images [0, count) of a data set, `batch` at a time: uint8 [b,C,Y,X] and labels int64 [b].
void for_batches(const Dataset& data, int64_t count, int64_t batch,
                 const std::function<void(const torch::Tensor&, const torch::Tensor&)>& use);

/// 1, 2, 4, .. below `tokens`, and `tokens`: the prefixes that are looked at.
std::vector<int64_t> prefix_lengths(int64_t tokens);

}  // namespace sigma
