// A measured number with its provenance. Numbers of different extractors, references or counts
// refuse to be compared.
#pragma once

#include <cstdint>
#include <string>

#include "sigma/base/config.h"

namespace sigma {

struct MetricResult {
  std::string name;  // "fd_fashion_cnn", "label_accuracy", "energy"
  double value = 0;
  std::string extractor;  // "fd_fashion_cnn"; empty: none
  std::string extractor_sha256;
  std::string reference;  // "fashion train"
  int64_t n_reference = 0;
  int64_t n_samples = 0;
  double floor = 0;  // the same metric on held-out real data; NaN: not known
  Json to_json() const;
  /// Of what to_json() gave; null becomes NaN. Errors: kData.
  static MetricResult from_json(const Json& json);
};

/// What differs in their provenance, "n_samples: 10000 and 5"; empty: both may be compared.
std::string incomparable(const MetricResult& a, const MetricResult& b);

struct MetricsConfig {
  int64_t n_samples = 10000;
  void visit(ConfigVisitor& v);
};

/// A file of assets/ (feature weights, reference statistics): SIGMA_ASSETS, beside the program, or
/// in the source tree. kUsage.
std::string find_asset(const std::string& name);

}  // namespace sigma
