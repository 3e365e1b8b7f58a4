#include "sigma/cli/eval_record.h"

#include <cmath>
#include <numeric>

#include "sigma/base/error.h"
#include "sigma/base/progress.h"
#include "sigma/base/version.h"
#include "sigma/train/config.h"
#include "sigma/train/run.h"

namespace sigma {

CommandResult recorded(CommandResult evaluation, const GlobalOptions& global) {
  if (global.dry_run) return evaluation;
  const std::filesystem::path run = evaluation.result.at("run").get<std::string>();
  const int64_t batch = load_config_toml(run / "config.toml").train.batch;
  Json line = evaluation.result;
  line.erase("run");
  line["images_seen"] = line.at("step").get<int64_t>() * batch;
  line["version"] = version();
  line["git"] = commit_hash();
  try {
    append_to_log(run, "eval", line);
  } catch (const Error& error) {
    print_note(fmt::format("warning: the result is not in the run's log: {}", error.what()));
  }
  return evaluation;
}

std::string Measurement::key() const {
  return fmt::format("{}, {}{}", metric.name, setting.empty() ? "" : setting + ", ",
                     ema == "none" ? "raw weights" : "averaged weights");
}

std::vector<Measurement> measurements(const RunLog& log) {
  std::vector<Measurement> out;
  const auto read = [&out](const Json& list, const Measurement& common) {
    for (const Json& metric : list) {
      out.push_back(common);
      out.back().metric = MetricResult::from_json(metric);
    }
  };
  for (const LogEvaluation& evaluation : log.evaluations) {
    const Json& line = evaluation.line;
    const size_t before = out.size();
    try {
      Measurement common;
      common.cost = evaluation.cost;
      common.weights_sha256 = line.at("weights_sha256").get<std::string>();
      common.ema = line.at("ema").get<std::string>();
      common.version = fmt::format("{} ({})", line.at("version").get<std::string>(),
                                   line.at("git").get<std::string>());
      common.seed = line.value("seed", int64_t{0});
      if (line.contains("metrics")) read(line.at("metrics"), common);
      for (const Json& row : line.value("rows", Json::array())) {
        common.steps = row.at("steps").get<int64_t>();
        common.guidance = row.at("guidance").get<double>();
        common.setting = fmt::format("steps {}, guidance {}", common.steps, common.guidance);
        read(row.at("metrics"), common);
      }
    } catch (const Json::exception&) {
      out.resize(before);
    } catch (const Error&) {
      out.resize(before);
    }
  }
  return out;
}

bool lower_is_better(const std::string& metric) {
  return metric.starts_with("fd_") || metric.starts_with("rfd_") || metric.starts_with("energy_");
}

Spread spread_of(const std::vector<double>& values) {
  const auto n = static_cast<double>(values.size());
  Spread out{.mean = std::accumulate(values.begin(), values.end(), 0.0) / n,
             .deviation = std::nan(""),
             .count = static_cast<int64_t>(values.size())};
  if (values.size() < 2) return out;
  double squares = 0;
  for (const double value : values) squares += (value - out.mean) * (value - out.mean);
  out.deviation = std::sqrt(squares / (n - 1));
  return out;
}

}  // namespace sigma
