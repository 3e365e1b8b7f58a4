// An exponential moving average of the weights: p_ema = d p_ema + (1 - d) p, d = min(decay,
// (1+i)/(10+i)) at update i.
//
// Sampling, evaluation and latents use the average. Not supported: several averages, power EMA.
#pragma once

#include <torch/nn/module.h>

#include <string>
#include <vector>

#include "sigma/io/safetensors.h"
#include "sigma/train/config.h"

namespace sigma {

class Ema {
 public:
  /// Starts at the module's present weights. Buffers are copied, not averaged.
  Ema(torch::nn::Module& module, const EmaConfig& config);
  /// Update i (from 0). `found_inf` as for the optimizer: 1 leaves the average unchanged.
  void update(int64_t i, const torch::Tensor& found_inf);
  double decay(int64_t i) const;

  /// The module's names; parameters averaged, buffers as they are.
  NamedTensors state() const;
  void load(const SafetensorsFile& file);
  /// Exchanges the module's parameters with the averaged ones.
  void swap();

 private:
  EmaConfig config_;
  NamedTensors parameters_;  // live
  NamedTensors buffers_;     // live
  std::vector<torch::Tensor> live_;
  std::vector<torch::Tensor> average_;
};

/// Parameters and buffers of a module by name, float32 weights as they are.
NamedTensors named_state(const torch::nn::Module& module);
/// Numbers in the parameters.
int64_t count_parameters(const torch::nn::Module& module);

}  // namespace sigma
