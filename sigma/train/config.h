// The configuration of a run: everything a recipe can say.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "sigma/base/config.h"
#include "sigma/data/dataset.h"
#include "sigma/generator/generator.h"
#include "sigma/metrics/metric.h"
#include "sigma/tokenizer/tokenizer.h"

namespace sigma {

struct ClassifierConfig {
  int64_t num_classes = 10;
  void visit(ConfigVisitor& v);
};

struct OptimizerConfig {
  std::string kind = "adamw";
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  double grad_clip = 0;
  void visit(ConfigVisitor& v);
};

struct ScheduleConfig {
  std::string kind = "constant";  // constant | cosine
  int64_t warmup_steps = 0;
  double decay_from = 0;  // cosine: share of the run after which the rate falls
  double final = 0;       // cosine: share of lr at the end
  void visit(ConfigVisitor& v);
};

struct EmaConfig {
  std::string kind = "constant";
  double decay = 0.999;
  bool warmup = true;
  void visit(ConfigVisitor& v);
};

struct TrainConfig {
  int64_t seed = 0;
  int64_t images = 100'000;
  int64_t batch = 128;
  int64_t micro_batch = 0;
  std::string device = "auto";
  std::string compute_dtype = "auto";
  std::string on_nonfinite = "stop";  // stop | skip
  int64_t max_skips = 10;
  std::string start_from;  // a finished run whose weights are the start; empty: initial values
  std::string only;        // parts that are trained ("decoder hog"); empty: all
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  EmaConfig ema;
  int64_t steps() const { return (images + batch - 1) / batch; }
  int64_t micro() const { return micro_batch > 0 ? micro_batch : batch; }
  void visit(ConfigVisitor& v);
};

struct CheckpointConfig {
  int64_t every = 32 * 1024;
  int64_t keep_last = 3;
  int64_t keep_every = 0;
  void visit(ConfigVisitor& v);
};

struct LogConfig {
  int64_t every = 50;   // steps a log line
  double interval = 5;  // seconds between progress lines where stderr is no terminal
  void visit(ConfigVisitor& v);
};

struct RunConfig {
  std::string task = "generator";  // generator | tokenizer | classifier
  DataConfig data;
  GeneratorConfig generator;
  TokenizerConfig tokenizer;
  ClassifierConfig classifier;
  TrainConfig train;
  CheckpointConfig checkpoint;
  LogConfig log;
  MetricsConfig metrics;
  void visit(ConfigVisitor& v);
};

/// recipe < environment < --set. Resolves nothing that depends on the machine.
RunConfig load_run_config(const std::filesystem::path& recipe,
                          const std::vector<std::string>& assignments);
/// The config.toml of a run directory.
RunConfig load_config_toml(const std::filesystem::path& file);
/// Replaces "auto" for device and compute_dtype by what this machine has. Errors: kDevice (no such
/// device).
void resolve(RunConfig& config);
torch::Device device_of(const TrainConfig& config);
torch::ScalarType compute_dtype_of(const TrainConfig& config);

}  // namespace sigma
