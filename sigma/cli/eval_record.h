// Evaluations in a run's log: written by eval, read by report and compare.
#pragma once

#include <string>
#include <vector>

#include "sigma/cli/cli.h"
#include "sigma/metrics/metric.h"
#include "sigma/train/run_log.h"

namespace sigma {

/// Adds the result of an evaluation to the log of its run and hands it on. A log that cannot be
/// written is a warning: the result is not lost for it. A dry run leaves the log alone.
CommandResult recorded(CommandResult evaluation, const GlobalOptions& global);

/// A metric of a run with all that it depends on.
struct Measurement {
  MetricResult metric;
  std::string setting;  // of the sampler: "steps 1, guidance 1.5"; empty: no sampler
  int64_t steps = 0;    // of the sampler
  double guidance = 0;
  Cost cost;  // of the weights
  std::string weights_sha256;
  std::string ema;
  std::string version;  // of the program that measured, with its commit
  int64_t seed = 0;     // of the noise
  /// Name, setting and average: what may stand in one row of a comparison.
  std::string key() const;
};

/// Every metric in the log, in its order. Lines that are no evaluation are passed over.
std::vector<Measurement> measurements(const RunLog& log);

/// Distances: the smaller, the better. Of all others more is better.
bool lower_is_better(const std::string& metric);

/// Mean and sample standard deviation; NaN of fewer than two.
struct Spread {
  double mean = 0;
  double deviation = 0;
  int64_t count = 0;
};
Spread spread_of(const std::vector<double>& values);

}  // namespace sigma
