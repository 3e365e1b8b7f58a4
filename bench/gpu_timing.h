// Times and memory of calls on an NVIDIA GPU, and rows of a table of them. Through torch's interface
// for any device, so that it builds without CUDA.
#pragma once

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/autograd.h>
#include <torch/cuda.h>
#include <torch/types.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "bench/timing.h"

namespace sigma::bench {

/// The median of calls, each between two events of the GPU and after `prepare`, after calls that warm
/// up.
inline double median_ms(
    const std::function<void()>& f, const std::function<void()>& prepare = [] {}) {
  const c10::impl::VirtualGuardImpl gpu(c10::DeviceType::CUDA);
  const c10::Stream stream = gpu.getStream(gpu.getDevice());
  const auto timed = [&](int repeats) {
    std::vector<std::pair<c10::Event, c10::Event>> events;
    for (int i = 0; i < repeats; ++i) {
      auto& [start, end] =
          events.emplace_back(c10::Event(c10::DeviceType::CUDA, c10::EventFlag::BACKEND_DEFAULT),
                              c10::Event(c10::DeviceType::CUDA, c10::EventFlag::BACKEND_DEFAULT));
      prepare();
      start.record(stream);
      f();
      end.record(stream);
    }
    torch::cuda::synchronize();
    std::vector<double> times;
    for (const auto& [start, end] : events) times.push_back(start.elapsedTime(end));
    return median(std::move(times));
  };
  constexpr int kWarm = 3;
  const double warm = step_seconds(torch::kCUDA, 1, [&] { timed(kWarm); })[0] / kWarm;
  return timed(std::clamp(static_cast<int>(1 / warm), 5, 50));
}

inline void free_cached_memory() {
  torch::cuda::synchronize();
  c10::getDeviceAllocator(c10::DeviceType::CUDA)->emptyCache();
}

/// The most bytes that tensors take during f, on top of those that were there.
inline double extra_bytes(const std::function<void()>& f) {
  auto* allocator = c10::getDeviceAllocator(c10::DeviceType::CUDA);
  torch::cuda::synchronize();
  allocator->resetPeakStats(0);
  const auto bytes = [&] { return allocator->getDeviceStats(0).allocated_bytes[0]; };
  const int64_t before = bytes().current;
  f();
  torch::cuda::synchronize();
  return static_cast<double>(bytes().peak - before);
}

/// New tensors of these sizes get memory that holds NaN.
inline void poison(const std::vector<torch::Tensor>& like) {
  std::vector<torch::Tensor> kept;
  for (const auto& t : like)
    kept.push_back(torch::full_like(t, std::numeric_limits<double>::quiet_NaN()));
}

/// |x - exact| / |exact|
inline double relative_error(const torch::Tensor& x, const torch::Tensor& exact) {
  return ((x.to(torch::kDouble) - exact).norm() / exact.norm()).item<double>();
}

struct Row {
  std::string side;
  double forward = 0, backward = 0;  // ms
  double memory = 0;                 // bytes, forward and backward
  std::vector<double> errors;        // output, then gradients; empty: not compared
  std::string failed;                // why there are no numbers
};

using Tensors = std::vector<torch::Tensor>;

/// `check`: errors of output and gradients. The backward is timed alone, each time on a new graph:
/// what a backward makes for itself is not kept from the last.
inline Row measure(const std::string& side, const std::function<torch::Tensor()>& f,
                   const Tensors& leaves, const torch::Tensor& grad,
                   const std::function<std::vector<double>(const torch::Tensor&, const Tensors&)>&
                       check = nullptr) {
  Row row{.side = side};
  torch::Tensor out;
  const auto gradients = [&] {
    return torch::autograd::grad({std::exchange(out, {})}, leaves, {grad});
  };
  try {
    Tensors outputs = leaves;
    outputs.push_back(grad);
    poison(outputs);
    out = f();
    const torch::Tensor value = out.detach();
    const Tensors grads = gradients();
    if (check) row.errors = check(value, grads);
    row.backward = median_ms([&] { gradients(); }, [&] { out = f(); });
    row.memory = extra_bytes([&] {
      out = f();
      gradients();
    });
    const torch::NoGradGuard no_grad;
    row.forward = median_ms([&] { f(); });
  } catch (const std::exception& error) {
    const std::string text = error.what();
    row.failed = text.substr(0, text.find('\n'));
  }
  return row;
}

}  // namespace sigma::bench
