// A generator from a run directory, for sampling and evaluation.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "sigma/io/checkpoint.h"
#include "sigma/train/config.h"
#include "sigma/train/generator_model.h"

namespace sigma {

struct LoadedGenerator {
  std::filesystem::path run;
  std::filesystem::path checkpoint;  // its folder
  RunConfig config;
  std::unique_ptr<GeneratorModel> model;
  std::string run_id;
  std::string weights_sha256;
  std::string ema;  // main | none
  int64_t step = 0;
};

/// The newest verified checkpoint of a generator run. ema: main | none. device: auto | cpu | cuda.
/// Errors: kUsage, kCheckpoint, kDevice.
LoadedGenerator load_generator(const std::string& run, const std::string& ema,
                               const std::string& device);

/// That checkpoint, by the configuration in it. Errors: kUsage, kCheckpoint, kDevice.
LoadedGenerator load_generator_at(const Checkpoint& checkpoint, const std::string& ema,
                                  const std::string& device);

/// int64 labels of images `indices`: the index mod the classes; undefined without classes.
torch::Tensor class_labels(const torch::Tensor& indices, int64_t num_classes);

}  // namespace sigma
