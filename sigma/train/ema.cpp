#include "sigma/train/ema.h"

#include <torch/types.h>

#include <algorithm>

#include "sigma/train/optimizer.h"

namespace sigma {

using torch::Tensor;

Ema::Ema(torch::nn::Module& module, const EmaConfig& config) : config_(config) {
  for (const auto& item : module.named_parameters()) {
    parameters_.emplace_back(item.key(), item.value());
    live_.push_back(item.value());
    average_.push_back(item.value().detach().clone());
  }
  for (const auto& item : module.named_buffers()) buffers_.emplace_back(item.key(), item.value());
}

double Ema::decay(int64_t i) const {
  if (!config_.warmup) return config_.decay;
  const auto n = static_cast<double>(i);
  return std::min(config_.decay, (1 + n) / (10 + n));
}

void Ema::update(int64_t i, const Tensor& found_inf) {
  const torch::NoGradGuard no_grad;
  if (found_inf.is_cpu()) {
    if (found_inf.item<double>() == 0) at::_foreach_lerp_(average_, live_, 1 - decay(i));
    return;
  }
  // The weight stays on the device, so that the loop needs no synchronisation.
  auto difference = at::_foreach_sub(live_, average_);
  at::_foreach_mul_(difference, (1 - decay(i)) * (1 - found_inf));
  at::_foreach_add_(average_, difference);
}

NamedTensors Ema::state() const {
  NamedTensors out;
  for (size_t i = 0; i < parameters_.size(); ++i)
    out.emplace_back(parameters_[i].first, average_[i]);
  out.insert(out.end(), buffers_.begin(), buffers_.end());
  return out;
}

void Ema::load(const SafetensorsFile& file) { load_tensors(state(), file); }

void Ema::swap() {
  const torch::NoGradGuard no_grad;
  for (size_t i = 0; i < live_.size(); ++i) {
    const Tensor keep = live_[i].clone();
    live_[i].copy_(average_[i]);
    average_[i].copy_(keep);
  }
}

NamedTensors named_state(const torch::nn::Module& module) {
  NamedTensors out;
  for (const auto& item : module.named_parameters())
    out.emplace_back(item.key(), item.value().detach());
  for (const auto& item : module.named_buffers()) out.emplace_back(item.key(), item.value());
  return out;
}

int64_t count_parameters(const torch::nn::Module& module) {
  int64_t count = 0;
  for (const auto& item : module.named_parameters()) count += item.value().numel();
  return count;
}

}  // namespace sigma
