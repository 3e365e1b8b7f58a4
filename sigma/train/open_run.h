// A run that was trained, to look at: its configuration, a checkpoint, one of its weights files.
#pragma once

#include <filesystem>
#include <string>

#include "sigma/io/checkpoint.h"
#include "sigma/io/safetensors.h"
#include "sigma/train/config.h"

namespace sigma {

struct OpenRun {
  std::filesystem::path folder;
  RunConfig config;  // resolved for `device`
  Checkpoint checkpoint;
  std::string stem;  // of the weights file: ema-main, model
  torch::Device device = torch::kCPU;

  SafetensorsFile weights() const { return checkpoint.open(stem); }
  std::string weights_sha256() const { return checkpoint.file_sha256(stem); }
  std::string id() const;
};

/// ema: main | none. device: cpu | cuda; auto: a GPU if there is one and the run may use it. On a CPU
/// products are in float32 whatever the run did. Errors: kUsage (no such weights), kDevice.
OpenRun open_run(std::filesystem::path folder, RunConfig config, Checkpoint checkpoint,
                 const std::string& ema, const std::string& device);

/// The newest verified checkpoint of a run, by path or name under runs/; `finished`: of a run that
/// has reached its end. Errors: kUsage (no such run, another task, not finished), kCheckpoint,
/// kDevice.
OpenRun open_run(const std::string& name, const std::string& task, const std::string& ema,
                 const std::string& device, bool finished = false);

/// The weights file of a checkpoint for --ema main or none: ema-main, model.
std::string weights_stem(const std::string& ema);

}  // namespace sigma
