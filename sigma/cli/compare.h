// What runs have in common and where they differ: settings, metrics at equal cost, the spread over
// seeds. Ranks only what is comparable.
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "sigma/cli/eval_record.h"
#include "sigma/train/run_log.h"

namespace sigma {

struct ComparedRun {
  std::filesystem::path folder;
  std::string name;
  std::string task;
  std::string run_id;
  std::string data_sha256;                      // images_sha256()
  std::map<std::string, std::string> settings;  // every key
  std::string identity;                         // what makes it what it is, but its seed
  RunLog log;
  std::vector<Measurement> measured;
  size_t group = 0;  // of Comparison::groups
};

/// Runs that differ in train.seed only.
struct RunGroup {
  std::string name;  // of its runs
  std::vector<size_t> runs;
};

/// One metric of one sampler setting over all runs.
struct MetricRow {
  std::string metric;
  std::string setting;
  double cost = 0;                               // that all runs were measured near, in `at`
  std::vector<std::optional<Measurement>> runs;  // the nearest to that cost; nullopt: not measured
  std::string obstacle;        // why they are not comparable; empty: they are, and only then:
  std::vector<Spread> groups;  // over seeds; count 0: not measured
  std::vector<int64_t> ranks;  // of the groups, from 1; 0: nothing to rank against
};

struct Comparison {
  std::string at;  // images | flops | seconds
  std::vector<ComparedRun> runs;
  std::vector<RunGroup> groups;
  std::vector<std::pair<std::string, std::vector<std::string>>> settings;  // key, value a run
  double common_cost = 0;                                                  // that every run reached
  std::vector<double> losses;  // of the runs there; NaN: none
  std::vector<MetricRow> metrics;
};

/// Errors: kUsage (no such run, a run named twice, `at` flops of a run whose log has none), kIo.
Comparison compare_runs(const std::vector<std::string>& runs, const std::string& at);

/// The comparison as a page; `device`: where the same-seed grids are sampled.
std::string comparison_page(const Comparison& comparison, const std::string& device);

/// Head and rows of its tables, for the terminal and the page.
using TextTable = std::vector<std::vector<std::string>>;
TextTable runs_table(const Comparison& comparison);
TextTable settings_table(const Comparison& comparison);
TextTable metrics_table(const Comparison& comparison);
/// "METRIC: not comparable: REASON" for each metric that is not ranked.
std::vector<std::string> obstacle_lines(const Comparison& comparison);

}  // namespace sigma
