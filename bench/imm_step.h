// One training step of inductive moment matching: ours against the same network and loss in PyTorch
// (bench/imm_step.py).
//
// Both sides: draw noise and times, two forwards, one backward, fused AdamW, average of the
// weights; labels; synthetic data.
#pragma once

#include <torch/cuda.h>
#include <torch/types.h>
#include <torch/utils.h>
#include <torch/version.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "bench/timing.h"
#include "sigma/base/config.h"
#include "sigma/base/error.h"
#include "sigma/generator/generator.h"
#include "sigma/nn/module.h"
#include "sigma/train/ema.h"
#include "sigma/train/optimizer.h"

namespace sigma::bench {

struct ImmStepCase {
  std::string name;
  GeneratorConfig generator;
  std::vector<int64_t> sample_shape;
  int64_t batch = 128;
  torch::Device device = torch::kCPU;
  torch::ScalarType dtype = torch::kFloat;
  int warmup = 3;
  int steps = 10;
};

class ImmStep {
 public:
  explicit ImmStep(const ImmStepCase& setup)
      : case_(setup),
        network_(setup.generator.network, setup.sample_shape),
        objective_(make_objective(setup.generator)) {
    initialize(network_, 0);
    network_.to(setup.device);
    // Zero-initialised layers would make the step cheaper than it is later on.
    const torch::NoGradGuard no_grad;
    for (auto& item : network_.named_parameters()) {
      if (item.value().abs().sum().item<double>() == 0) item.value().fill_(0.01);
    }
    NamedTensors parameters;
    for (const auto& item : network_.named_parameters())
      parameters.emplace_back(item.key(), item.value());
    optimizer_ = std::make_unique<AdamW>(parameters, OptimizerConfig{.lr = 1e-4});
    ema_ = std::make_unique<Ema>(network_, EmaConfig{});
    std::vector<int64_t> shape{setup.batch};
    shape.insert(shape.end(), setup.sample_shape.begin(), setup.sample_shape.end());
    data_.data = torch::empty(shape);
    samples_ = torch::arange(setup.batch, torch::kInt64);
    fill_normal(data_.data, {.seed = 1, .step = 0}, Purpose::kEval, 0, samples_);
    data_.data = data_.data.mul_(0.5).to(setup.device);
    data_.labels = samples_.remainder(setup.generator.network.num_classes).to(setup.device);
  }

  void step() {
    const Context context{.training = true,
                          .record = false,
                          .dtype = case_.dtype,
                          .rng = {.seed = 0, .step = ++count_},
                          .samples = samples_};
    optimizer_->zero_grad();
    const Draws draws = objective_->draw(data_, case_.generator.network.num_classes, context);
    const Output out = objective_->loss(network_, network_, data_, draws, context);
    out.losses.at("imm").backward();
    const torch::Tensor found_inf =
        torch::isfinite(optimizer_->grad_norm()).logical_not().to(torch::kFloat);
    optimizer_->step(1e-4, found_inf);
    ema_->update(static_cast<int64_t>(count_), found_inf);
  }

  /// Steps of `rounds` timed one by one.
  std::vector<double> time(int steps) {
    return step_seconds(case_.device, steps, [this] { step(); });
  }

  double flops() const {
    return network_.flops() * objective_->passes_per_step() * static_cast<double>(case_.batch);
  }

 private:
  const ImmStepCase& case_;
  DiffusionTransformer network_;
  std::unique_ptr<Objective> objective_;
  std::unique_ptr<AdamW> optimizer_;
  std::unique_ptr<Ema> ema_;
  GeneratorBatch data_;
  torch::Tensor samples_;
  uint64_t count_ = 0;
};

/// Runs bench/imm_step.py and returns its median seconds per step.
inline double python_seconds(const std::string& python, const ImmStepCase& c,
                             const std::string& mode) {
  const auto& n = c.generator.network;
  const std::string command = fmt::format(
      "{} {}/bench/imm_step.py --mode {} --device {} --dtype {} --batch {} --shape {} --patch {} "
      "--hidden {} --depth {} "
      "--heads {} --ratio {} --classes {} --activation {} --preconditioner {} "
      "--warmup {} --steps {} --threads {}",
      python, SIGMA_SOURCE_DIR, mode, c.device.is_cuda() ? "cuda" : "cpu",
      c.dtype == torch::kFloat ? "float32" : "bfloat16", c.batch, fmt::join(c.sample_shape, ","),
      n.patch_size, n.trunk.hidden_size, n.trunk.depth, n.trunk.num_heads,
      static_cast<int>(n.trunk.mlp_ratio), n.num_classes, n.trunk.mlp.activation,
      c.generator.preconditioner, c.warmup, c.steps, at::get_num_threads());
  FILE* pipe = popen(command.c_str(), "r");
  SIGMA_CHECK(kFailure, pipe != nullptr, "cannot start {}", python);
  std::array<char, 256> line{};
  double seconds = 0;
  while (fgets(line.data(), line.size(), pipe)) {
    if (std::sscanf(line.data(), "median_seconds %lf", &seconds) != 1)
      std::fputs(line.data(), stderr);
  }
  SIGMA_CHECK(kFailure, pclose(pipe) == 0 && seconds > 0, "the Python side failed: {}", command);
  return seconds;
}

/// Prints a row a side; returns the ratio of the best of `modes` to ours (above 1: we are faster),
/// 0 without Python.
inline int compare(const ImmStepCase& setup, const Arguments& arguments,
                   const std::vector<std::string>& modes) {
  ImmStep ours(setup);
  ours.time(setup.warmup);
  std::vector<double> seconds = ours.time(setup.steps);
  struct Row {
    std::string side;
    double seconds;
  };
  std::vector<Row> rows = {{"sigma", 0}};
  if (!arguments.python.empty()) {
    for (const std::string& mode : modes)
      rows.push_back({"pytorch " + mode, python_seconds(arguments.python, setup, mode)});
    // Again after the peers: a machine that slows down slows both.
    const std::vector<double> again = ours.time(setup.steps);
    seconds.insert(seconds.end(), again.begin(), again.end());
  }
  rows[0].seconds = median(seconds);
  double eager_ratio = 0;
  if (!arguments.json)
    fmt::print("{}\n{:<16} {:>12} {:>12} {:>10} {:>8}\n", setup.name, "side", "ms a step",
               "samples/s", "TFLOP/s", "ratio");
  for (const Row& row : rows) {
    const double ratio = row.seconds / rows[0].seconds;
    if (row.side == "pytorch eager") eager_ratio = ratio;
    const double rate = static_cast<double>(setup.batch) / row.seconds;
    const double tflops = ours.flops() / row.seconds / 1e12;
    if (arguments.json) {
      const Json line = {{"bench", setup.name},   {"side", row.side}, {"seconds", row.seconds},
                         {"samples_per_s", rate}, {"tflops", tflops}, {"ratio_to_sigma", ratio},
                         {"torch", TORCH_VERSION}};
      fmt::print("{}\n", line.dump());
    } else {
      fmt::print("{:<16} {:>12.3f} {:>12.1f} {:>10.3f} {:>8.3f}\n", row.side, row.seconds * 1e3,
                 rate, tflops, ratio);
    }
  }
  if (!arguments.check) return 0;
  SIGMA_CHECK(kUsage, !arguments.python.empty(), "--check needs --python");
  const bool passed = eager_ratio >= 1.0;
  fmt::print(stderr, "goal: at least as fast as PyTorch eager: {} ({:.3f})\n",
             passed ? "passed" : "missed", eager_ratio);
  return passed ? 0 : 1;
}

}  // namespace sigma::bench
