// One training step of a tokenizer: ours against the same network and losses in PyTorch
// (bench/tokenizer_step.py).
//
// Both sides: draw a mask, forward, losses, backward, clipped gradients, fused AdamW, average of
// the weights; synthetic images that are on the device already. Both run at the same time and take
// turns, a few steps each, so that a machine that slows down slows both; medians of single steps.
#pragma once

#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <torch/cuda.h>
#include <torch/types.h>
#include <torch/utils.h>
#include <torch/version.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "bench/timing.h"
#include "sigma/base/config.h"
#include "sigma/base/error.h"
#include "sigma/nn/module.h"
#include "sigma/tokenizer/tokenizer.h"
#include "sigma/train/config.h"
#include "sigma/train/ema.h"
#include "sigma/train/finite.h"
#include "sigma/train/optimizer.h"

namespace sigma::bench {

struct TokenizerStepCase {
  std::string name;
  TokenizerConfig tokenizer;
  std::vector<int64_t> image_shape;
  OptimizerConfig optimizer = {.grad_clip = 1};
  int64_t batch = 128;
  torch::Device device = torch::kCPU;
  torch::ScalarType dtype = torch::kFloat;
  int warmup = 3;
  int rounds = 5;
  int steps = 5;  // a round
};

class TokenizerStep {
 public:
  explicit TokenizerStep(const TokenizerStepCase& setup)
      : case_(setup), model_(setup.tokenizer, setup.image_shape), finite_(setup.device) {
    initialize(model_, 0);
    model_.to(setup.device);
    NamedTensors parameters;
    for (const auto& item : model_.named_parameters())
      parameters.emplace_back(item.key(), item.value());
    optimizer_ = std::make_unique<AdamW>(parameters, setup.optimizer);
    ema_ = std::make_unique<Ema>(model_, EmaConfig{});
    std::vector<int64_t> shape{setup.batch};
    shape.insert(shape.end(), setup.image_shape.begin(), setup.image_shape.end());
    images_ = normal(shape, 0).mul_(0.5).to(setup.device);
    samples_ = torch::arange(setup.batch, torch::kInt64);
  }

  /// Seconds of `steps` steps, one by one.
  std::vector<double> time(int steps) {
    return step_seconds(case_.device, steps, [this] { step(); });
  }

  int64_t parameters() const {
    int64_t sum = 0;
    for (const auto& p : model_.parameters()) sum += p.numel();
    return sum;
  }
  double flops() const { return 3 * model_.flops() * static_cast<double>(case_.batch); }

 private:
  // As the loop of sigma/train/trainer.cpp.
  void step() {
    const Context context{.training = true,
                          .record = true,
                          .dtype = case_.dtype,
                          .rng = {.seed = 0, .step = ++count_},
                          .samples = samples_};
    optimizer_->zero_grad();
    torch::Tensor loss = torch::zeros({}, images_.options());
    const Output out = model_.forward(images_, context);
    for (const auto& [name, value] : out.losses) loss = loss + value;
    loss.backward();
    const torch::Tensor norm = optimizer_->grad_norm();
    const torch::Tensor found_inf = finite_.record(loss.detach(), norm);
    optimizer_->clip(norm);
    optimizer_->step(case_.optimizer.lr, found_inf);
    ema_->update(static_cast<int64_t>(count_), found_inf);
  }

  const TokenizerStepCase& case_;
  Tokenizer model_;
  std::unique_ptr<AdamW> optimizer_;
  std::unique_ptr<Ema> ema_;
  FiniteCheck finite_;
  torch::Tensor images_, samples_;
  uint64_t count_ = 0;
};

/// bench/tokenizer_step.py in a process of its own, which waits for its turns.
class Peer {
 public:
  Peer(const std::string& python, TokenizerStepCase setup, const std::string& mode) {
    const auto json = [](auto& config) { return write_config(visit_of(config)).dump(); };
    std::vector<std::string> words = {
        python,        SIGMA_SOURCE_DIR "/bench/tokenizer_step.py",
        "--config",    json(setup.tokenizer),
        "--optimizer", json(setup.optimizer),
        "--mode",      mode,
        "--device",    setup.device.is_cuda() ? "cuda" : "cpu",
        "--dtype",     setup.dtype == torch::kFloat ? "float32" : "bfloat16",
        "--batch",     std::to_string(setup.batch),
        "--shape",     fmt::format("{}", fmt::join(setup.image_shape, ",")),
        "--warmup",    std::to_string(setup.warmup),
        "--threads",   std::to_string(at::get_num_threads())};
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    std::array<int, 2> ends{};
    SIGMA_CHECK(kFailure, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0,
                "cannot make a socket for the Python side");
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    const int error = posix_spawnp(&pid_, argv[0], &actions, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    socket_ = ends[0];
    answers_ = fdopen(socket_, "r");
    SIGMA_CHECK(kFailure, error == 0, "cannot start {}", python);
    parameters_ = static_cast<int64_t>(number("parameters %lf"));
  }
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;
  ~Peer() {
    fclose(answers_);  // its loop ends
    waitpid(pid_, nullptr, 0);
  }

  std::vector<double> time(int steps) {
    const std::string order = fmt::format("{}\n", steps);
    SIGMA_CHECK(kFailure, write(socket_, order.data(), order.size()) > 0,
                "the Python side has ended");
    std::vector<double> seconds;
    for (int i = 0; i < steps; ++i) seconds.push_back(number("%lf"));
    return seconds;
  }
  int64_t parameters() const { return parameters_; }

 private:
  // The next line that has the form; others go to stderr.
  double number(const char* form) {
    std::array<char, 256> line{};
    double value = 0;
    while (fgets(line.data(), line.size(), answers_)) {
      if (std::sscanf(line.data(), form, &value) == 1) return value;
      std::fputs(line.data(), stderr);
    }
    fail(ErrorKind::kFailure, "the Python side has ended");
  }

  pid_t pid_ = 0;
  int socket_ = -1;
  FILE* answers_ = nullptr;
  int64_t parameters_ = 0;
};

/// Prints a row a side; returns 1 where `check` finds us slower than PyTorch eager, else 0.
inline int compare(const TokenizerStepCase& setup, const Arguments& arguments,
                   const std::vector<std::string>& modes) {
  SIGMA_CHECK(kUsage, !arguments.check || !arguments.python.empty(), "--check needs --python");
  struct Row {
    std::string side;
    int64_t parameters = 0;
    std::vector<double> seconds;
  };
  TokenizerStep ours(setup);
  ours.time(setup.warmup);
  std::vector<Row> rows = {{"sigma", ours.parameters(), {}}};
  std::vector<std::unique_ptr<Peer>> peers;
  if (!arguments.python.empty()) {
    for (const std::string& mode : modes) {
      peers.push_back(std::make_unique<Peer>(arguments.python, setup, mode));
      rows.push_back({"pytorch " + mode, peers.back()->parameters(), {}});
      SIGMA_CHECK(kFailure, rows.back().parameters == rows[0].parameters,
                  "{}: expected equally many parameters, Sigma has {}, PyTorch {}", setup.name,
                  rows[0].parameters, rows.back().parameters);
    }
  }
  for (int round = 0; round < setup.rounds; ++round) {
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto more = i == 0 ? ours.time(setup.steps) : peers[i - 1]->time(setup.steps);
      rows[i].seconds.insert(rows[i].seconds.end(), more.begin(), more.end());
    }
  }
  double eager_ratio = 0;
  if (!arguments.json)
    fmt::print("{}\n{:<16} {:>12} {:>12} {:>12} {:>10} {:>8}\n", setup.name, "side", "parameters",
               "ms a step", "images/s", "TFLOP/s", "ratio");
  const double sigma_seconds = median(rows[0].seconds);
  for (const Row& row : rows) {
    const double seconds = median(row.seconds);
    const double ratio = seconds / sigma_seconds;
    if (row.side == "pytorch eager") eager_ratio = ratio;
    const double rate = static_cast<double>(setup.batch) / seconds;
    const double tflops = ours.flops() / seconds / 1e12;
    if (arguments.json) {
      const Json line = {{"bench", setup.name},          {"side", row.side},
                         {"parameters", row.parameters}, {"seconds", seconds},
                         {"images_per_s", rate},         {"tflops", tflops},
                         {"ratio_to_sigma", ratio},      {"torch", TORCH_VERSION}};
      fmt::print("{}\n", line.dump());
    } else {
      fmt::print("{:<16} {:>12} {:>12.3f} {:>12.1f} {:>10.3f} {:>8.3f}\n", row.side, row.parameters,
                 seconds * 1e3, rate, tflops, ratio);
    }
  }
  if (!arguments.check) return 0;
  const bool passed = eager_ratio >= 1.0;
  fmt::print(stderr, "goal: at least as fast as PyTorch eager: {} ({:.3f})\n",
             passed ? "passed" : "missed", eager_ratio);
  return passed ? 0 : 1;
}

/// What MAETok's settings share at any size; the caller sets the sizes.
inline TokenizerConfig maetok() {
  TokenizerConfig config;
  config.mask = {.policy = "replace", .distribution = "truncated_normal", .per = "step"};
  config.encoder.trunk.rope.kind = "mixed";
  config.decoder.condition = "latent_tokens";
  config.decoder.trunk.position = "none";
  config.decoder.trunk.rope.kind = "mixed";
  config.hog.weight = 1;
  return config;
}

}  // namespace sigma::bench
