// Metrics of a generator, for `sigma eval` and sweeps.
#pragma once

#include <torch/types.h>

#include <string>
#include <vector>

#include "sigma/base/progress.h"
#include "sigma/metrics/feature_net.h"
#include "sigma/metrics/metric.h"
#include "sigma/train/load_generator.h"

namespace sigma {

/// The names that measure() knows.
std::vector<std::string> generator_metrics();
/// Errors: kUsage with the nearest of `known`.
void check_metric_names(const std::vector<std::string>& metrics,
                        const std::vector<std::string>& known);

class GeneratorQuality {
 public:
  /// Of `count` samples, `batch` a pass. No metrics named: fd_fashion_cnn and label_accuracy, of
  /// clips energy_pixels. Errors: kUsage (a metric that does not fit).
  GeneratorQuality(const LoadedGenerator& generator, std::vector<std::string> metrics,
                   int64_t count, int64_t batch, bool quiet);
  /// Errors: kData (the run's data, for energy_pixels).
  std::vector<MetricResult> measure(const SamplerConfig& sampler, int64_t seed);

 private:
  bool wanted(const char* metric) const;
  MetricResult energy(const torch::Tensor& images);

  const LoadedGenerator& generator_;
  std::vector<std::string> metrics_;
  int64_t count_;
  int64_t batch_;
  torch::Device device_;
  bool clips_;
  Progress progress_;
  FeatureExtractor extractor_;
  torch::Tensor real_;
  std::string real_name_;
};

}  // namespace sigma
