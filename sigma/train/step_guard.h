// What a step with a NaN or Inf in its loss or gradient does: nothing. It ends the run, or is
// skipped (train.on_nonfinite).
//
// Weights, moments and the average are guarded by the flag that record() gives. What a step changes
// besides (balance counts, usage of codes, replaced codes) is put back where skipping is on, at the
// cost of a copy of the model's state a step.
#pragma once

#include <torch/nn/module.h>

#include <vector>

#include "sigma/base/progress.h"
#include "sigma/train/config.h"
#include "sigma/train/finite.h"
#include "sigma/train/run.h"

namespace sigma {

class StepGuard {
 public:
  /// All four must outlive it.
  StepGuard(const TrainConfig& config, torch::nn::Module& module, Run& run, Progress& progress);
  /// Before the forward of a step.
  void begin();
  /// float scalar on the device: 1 if loss or norm is not finite.
  torch::Tensor record(const torch::Tensor& loss, const torch::Tensor& norm);
  /// After the update of `step`. Errors: see check().
  void end(const torch::Tensor& found_inf, int64_t step);
  /// Reads the flag of `step`, if it was not read: a GPU has to wait. Errors: kNonFinite (with the
  /// step, its images and the last checkpoint) unless the step may be skipped.
  void check(int64_t step);
  /// Steps skipped by this process.
  int64_t skipped() const { return skipped_; }

 private:
  const TrainConfig& config_;
  Run& run_;
  Progress& progress_;
  FiniteCheck finite_;
  std::vector<torch::Tensor> live_, kept_;  // empty where nothing is skipped
  int64_t skipped_ = 0;
  int64_t in_row_ = 0;
};

}  // namespace sigma
