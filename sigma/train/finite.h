// Whether loss and gradient of a step were finite, without making a GPU wait: the flag that guards
// the update stays on the device, the host reads a pinned copy of the two values a step later.
#pragma once

#include <torch/types.h>

#include <memory>
#include <optional>

namespace sigma {

class FiniteCheck {
 public:
  explicit FiniteCheck(torch::Device device) : device_(device) {}

  struct Values {
    float loss, norm;
  };

  /// float scalar on the device: 1 if loss or norm is NaN or Inf.
  torch::Tensor record(const torch::Tensor& loss, const torch::Tensor& norm) {
    const torch::Tensor both = torch::stack({loss.to(torch::kFloat), norm.to(torch::kFloat)});
    const torch::Tensor found_inf = torch::isfinite(both).all().logical_not().to(torch::kFloat);
    if (immediate()) {
      values_ = both;
    } else {
      values_ = torch::empty({2}, torch::TensorOptions().dtype(torch::kFloat).pinned_memory(true));
      values_.copy_(both, /*non_blocking=*/true);
      event_ = std::make_unique<c10::Event>(c10::DeviceType::CUDA);
      const c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
      event_->record(guard.getStream(device_));
    }
    return found_inf;
  }

  /// Of the step recorded last, once; nothing if it was taken or none was recorded.
  std::optional<Values> take() {
    if (!values_.defined()) return std::nullopt;
    if (event_) event_->synchronize();
    event_.reset();
    const Values out = {values_[0].item<float>(), values_[1].item<float>()};
    values_.reset();
    return out;
  }
  /// The values are there at once (on the CPU).
  bool immediate() const { return device_.is_cpu(); }

 private:
  torch::Device device_;
  torch::Tensor values_;
  std::unique_ptr<c10::Event> event_;
};

}  // namespace sigma
