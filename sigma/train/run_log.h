// What a run's log.jsonl says: the curve that its weights came from, its evaluations, its events.
// Broken lines are passed over; a resume from step s forgets the step lines after s.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "sigma/base/config.h"

namespace sigma {

/// Where a run stands: what it has cost so far.
struct Cost {
  int64_t step = 0;
  double images = 0;
  double flops = 0;    // forward and backward; NaN: the log does not say
  double seconds = 0;  // of the steps that led here: what a kill lost is not counted
};

struct LogStep {
  Cost cost;
  std::map<std::string, double> values;  // "loss", "losses/imm", "lr", ...; NaN: not finite
};

/// One line of `sigma eval`: Json as it stands in the log, and what the weights had cost.
struct LogEvaluation {
  Cost cost;
  Json line;
};

struct RunLog {
  std::vector<LogStep> steps;  // rising
  std::vector<LogEvaluation> evaluations;
  std::vector<Json> events;  // all lines but step and eval
  int64_t broken = 0;        // lines passed over

  /// The names of all values of the steps, sorted.
  std::vector<std::string> names() const;
  /// The last line; zero if there is none.
  Cost end() const { return steps.empty() ? Cost{} : steps.back().cost; }
  /// A field of the newest start or resume line: "flops_per_image", "data", ...; null: not there.
  Json of_start(const std::string& field) const;
};

/// Errors: kIo (no log).
RunLog read_run_log(const std::filesystem::path& run);

}  // namespace sigma
