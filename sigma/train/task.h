// What the trainer knows of a model: losses of a batch, and parameters by name. Three tasks:
// generator, tokenizer, classifier (sigma/train/tasks.cpp).
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "sigma/base/context.h"
#include "sigma/data/dataset.h"
#include "sigma/data/loader.h"
#include "sigma/nn/output.h"
#include "sigma/train/config.h"

namespace sigma {

class Task {
 public:
  virtual ~Task() = default;
  /// The module that is trained, averaged and saved, on its device.
  virtual torch::nn::Module& module() = 0;
  /// Losses and statistics of a micro-batch. `context.samples` are the indices in the global batch.
  virtual Output step(const RawBatch& batch, const Context& context) = 0;
  /// The micro-batch must be divisible by it.
  virtual int64_t group_size() const { return 1; }
  /// Operations of one training step, for one image.
  virtual double flops() const = 0;
  /// Rows of parameters that the step replaced (codes that restart), for the optimizer to forget
  /// their moments: name -> bool [rows].
  virtual std::map<std::string, torch::Tensor> replaced_rows() const { return {}; }
  /// Called once before the last checkpoint, with the averaged weights in place.
  virtual void finish() {}
  /// Files that belong to the run beside its checkpoints, written once at its start.
  virtual void write_assets(const std::filesystem::path& run) const { (void)run; }
};

/// The task of `config` with its weights initialised from the seed, and the data it trains on.
struct TaskBundle {
  std::unique_ptr<Dataset> data;
  std::vector<int64_t> image_shape;  // [C,Y,X] of the images behind the data
  std::unique_ptr<Task> task;
  std::filesystem::path latents_to_write;  // of a dry run: what training would encode to first
};
/// `config` must be resolved. `dry_run`: writes no latents; the data then are the images. Errors:
/// kUsage (a sampler that does not fit too), kData.
TaskBundle make_task(const RunConfig& config, bool dry_run = false);

}  // namespace sigma
