// What the benchmarks of single layers share: arguments, inputs, medians of repeated runs.
#pragma once

#include <torch/types.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "sigma/base/random.h"

namespace sigma::bench {

inline bool flag(int argc, char** argv, const std::string& name) {
  return std::any_of(argv + 1, argv + argc, [&](char* a) { return name == a; });
}

inline torch::Tensor normal(torch::IntArrayRef shape, uint32_t site) {
  torch::Tensor out = torch::empty(shape);
  fill_normal_keyed(out, 1, random_stream(Purpose::kEval, site), 0);
  return out;
}

/// The median of `repeats` calls after one that warms up; a single call is not warmed up.
inline double seconds(const std::function<void()>& f, int repeats) {
  if (repeats > 1) f();
  std::vector<double> times;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    f();
    times.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

inline double forward_seconds(const std::function<torch::Tensor()>& f, int repeats) {
  const torch::NoGradGuard no_grad;
  return seconds([&] { f(); }, repeats);
}

inline double both_seconds(const std::function<torch::Tensor()>& f, const torch::Tensor& grad,
                           int repeats) {
  return seconds([&] { f().backward(grad); }, repeats);
}

}  // namespace sigma::bench
