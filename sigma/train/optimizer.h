// AdamW (Loshchilov and Hutter, arXiv 1711.05101) on torch's fused kernel, and the learning rate.
//
//   m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
//   p -= lr (wd p + (m/(1-b1^t)) / (sqrt(v/(1-b2^t)) + eps))
#pragma once

#include <torch/types.h>

#include <string>
#include <utility>
#include <vector>

#include "sigma/io/safetensors.h"
#include "sigma/train/config.h"

namespace sigma {

class AdamW {
 public:
  AdamW(NamedTensors parameters, const OptimizerConfig& config);

  void zero_grad();
  /// L2 norm of all gradients, a float32 scalar on the device.
  torch::Tensor grad_norm() const;
  /// Scales the gradients so that their norm is at most config.grad_clip.
  void clip(const torch::Tensor& norm);
  /// One update. `found_inf` (float scalar on the device): 1 leaves weights, moments and step
  /// counts unchanged.
  void step(double lr, const torch::Tensor& found_inf);

  /// Forgets the moments of some rows of a parameter: they were replaced. rows: bool [n]. A parameter
  /// that is not trained is passed over.
  void forget(const std::string& parameter, const torch::Tensor& rows);

  /// exp_avg.P, exp_avg_sq.P, step.P.
  NamedTensors state() const;
  /// Errors: kCheckpoint (missing, extra, wrong shape: all listed).
  void load(const SafetensorsFile& file);

 private:
  NamedTensors parameters_;
  OptimizerConfig config_;
  std::vector<torch::Tensor> values_;
  std::vector<torch::Tensor> exp_avgs_;
  std::vector<torch::Tensor> exp_avg_sqs_;
  std::vector<torch::Tensor> steps_;
};

/// The learning rate of step `step` (from 1) of `total`: lr times warm-up times decay.
double learning_rate(const ScheduleConfig& schedule, double lr, int64_t step, int64_t total);

/// Copies every tensor of `file` into the named targets. One error lists every missing, extra,
/// wrong-shape and wrong-dtype name. `extra`: tensors that no target wants are allowed.
void load_tensors(const NamedTensors& targets, const SafetensorsFile& file, bool extra = false);

}  // namespace sigma
