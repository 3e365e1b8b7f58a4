// What the benchmarks of single layers share: arguments, inputs, medians of repeated runs.
#pragma once

#include <torch/cuda.h>
#include <torch/types.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "sigma/base/error.h"
#include "sigma/base/random.h"

namespace sigma::bench {

/// Of the benchmarks that have a side in Python.
struct Arguments {
  bool json = false;
  bool check = false;
  std::string python;
};

inline Arguments parse_arguments(int argc, char** argv) {
  Arguments out;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--json") out.json = true;
    else if (word == "--check") out.check = true;
    else if (word == "--python" && i + 1 < argc) out.python = argv[++i];
    else
      fail(ErrorKind::kUsage,
           "expected --json, --check or --python PATH (a Python with a full torch), got {}", word);
  }
  return out;
}

inline bool flag(int argc, char** argv, const std::string& name) {
  return std::any_of(argv + 1, argv + argc, [&](char* a) { return name == a; });
}

inline torch::Tensor normal(torch::IntArrayRef shape, uint32_t site) {
  torch::Tensor out = torch::empty(shape);
  fill_normal_keyed(out, 1, random_stream(Purpose::kEval, site), 0);
  return out;
}

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// Seconds of `steps` calls, one by one, the device's work included.
inline std::vector<double> step_seconds(torch::Device device, int steps,
                                        const std::function<void()>& step) {
  const auto synchronize = [&] {
    if (device.is_cuda()) torch::cuda::synchronize();
  };
  std::vector<double> out;
  for (int i = 0; i < steps; ++i) {
    synchronize();
    const auto start = std::chrono::steady_clock::now();
    step();
    synchronize();
    out.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
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
  return median(std::move(times));
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
