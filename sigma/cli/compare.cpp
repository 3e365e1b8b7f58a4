#include "sigma/cli/compare.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "sigma/base/error.h"
#include "sigma/cli/report_parts.h"
#include "sigma/io/files.h"
#include "sigma/train/config.h"
#include "sigma/train/run.h"

namespace sigma {
namespace {

namespace fs = std::filesystem;

constexpr double kEqualCost = 0.05;  // costs that differ by less count as equal
constexpr const char* kSeed = "train.seed";

ComparedRun read_run(const std::string& name) {
  ComparedRun out;
  out.folder = find_run(name);
  const Json info = Json::parse(read_file(out.folder / "run.json"));
  RunConfig config = load_config_toml(out.folder / "config.toml");
  out.task = config.task;
  out.run_id = info.at("run_id").get<std::string>();
  for (const auto& [key, value] : flatten(write_config(visit_of(config))))
    out.settings[key] = value;
  out.log = read_run_log(out.folder);
  out.measured = measurements(out.log);
  out.data_sha256 = images_sha256(out.log, info);
  out.identity = out.data_sha256;
  const Role identity = Role::kIdentity;
  for (const auto& [key, value] : flatten(write_config(visit_of(config), &identity))) {
    if (key != kSeed) out.identity += "\n" + key + "=" + value;
  }
  return out;
}

// The last parts of the paths where they tell the runs apart, else what was given.
void name_runs(std::vector<ComparedRun>& runs, const std::vector<std::string>& given) {
  std::set<std::string> names;
  for (ComparedRun& run : runs) {
    run.name = run_name(run.folder);
    names.insert(run.name);
  }
  if (names.size() == runs.size()) return;
  for (size_t i = 0; i < runs.size(); ++i) runs[i].name = given[i];
}

std::vector<RunGroup> group_runs(std::vector<ComparedRun>& runs) {
  std::vector<RunGroup> groups;
  std::map<std::string, size_t> known;
  for (size_t i = 0; i < runs.size(); ++i) {
    const auto [found, is_new] = known.try_emplace(runs[i].identity, groups.size());
    if (is_new) groups.emplace_back();
    runs[i].group = found->second;
    RunGroup& group = groups[found->second];
    group.name += (group.runs.empty() ? "" : ", ") + runs[i].name;
    group.runs.push_back(i);
  }
  return groups;
}

// Why two measurements may not be ranked against each other; empty: they may.
std::string obstacle_between(const ComparedRun& a, const Measurement& left, const ComparedRun& b,
                             const Measurement& right, const std::string& at) {
  std::vector<std::string> reasons;
  if (const std::string text = incomparable(left.metric, right.metric); !text.empty())
    reasons.push_back(text);
  if (a.data_sha256 != b.data_sha256) {
    reasons.push_back(
        fmt::format("data: {} and {}", a.data_sha256.substr(0, 12), b.data_sha256.substr(0, 12)));
  }
  const double x = cost_of(left.cost, at), y = cost_of(right.cost, at);
  if (!(std::abs(x - y) <= kEqualCost * std::max(x, y)))
    reasons.push_back(fmt::format("{}: {:.4g} and {:.4g}", at, x, y));
  if (reasons.empty()) return "";
  return fmt::format("{} ({} and {})", fmt::join(reasons, "; "), a.name, b.name);
}

class MetricTable {
 public:
  MetricTable(const Comparison& comparison) : c_(comparison) {}

  std::vector<MetricRow> rows() const {
    std::vector<MetricRow> out;
    std::set<std::string> seen;
    for (const ComparedRun& run : c_.runs) {
      for (const Measurement& m : run.measured) {
        if (seen.insert(m.key()).second) out.push_back(row_of(m));
      }
    }
    std::stable_sort(out.begin(), out.end(),
                     [](const MetricRow& a, const MetricRow& b) { return a.metric < b.metric; });
    return out;
  }

 private:
  // The measurement of a run nearest to a cost; of equally near ones the newest.
  std::optional<Measurement> nearest(const ComparedRun& run, const std::string& key,
                                     double cost) const {
    std::optional<Measurement> best;
    const auto distance = [&](const Measurement& m) {
      return std::abs(cost_of(m.cost, c_.at) - cost);
    };
    for (const Measurement& m : run.measured) {
      if (m.key() == key && (!best || !(distance(m) > distance(*best)))) best = m;
    }
    return best;
  }

  MetricRow row_of(const Measurement& like) const {
    const std::string key = like.key();
    MetricRow row{.metric = like.metric.name,
                  .setting = like.setting,
                  .cost = std::numeric_limits<double>::infinity()};
    if (like.ema == "none") row.setting += row.setting.empty() ? "raw weights" : ", raw weights";
    // What the run that was measured least far has cost.
    for (const ComparedRun& run : c_.runs) {
      if (const double cost = farthest_cost(run, key); cost >= 0)
        row.cost = std::min(row.cost, cost);
    }
    for (const ComparedRun& run : c_.runs) row.runs.push_back(nearest(run, key, row.cost));
    row.obstacle = obstacle_of(row);
    if (!row.obstacle.empty()) return row;
    for (const RunGroup& group : c_.groups) {
      std::vector<double> values;
      for (const size_t i : group.runs) {
        if (row.runs[i]) values.push_back(row.runs[i]->metric.value);
      }
      row.groups.push_back(spread_of(values));
    }
    rank(row);
    return row;
  }

  // -1: not measured.
  double farthest_cost(const ComparedRun& run, const std::string& key) const {
    double out = -1;
    for (const Measurement& m : run.measured) {
      if (m.key() == key) out = std::max(out, cost_of(m.cost, c_.at));
    }
    return out;
  }

  std::string obstacle_of(const MetricRow& row) const {
    // Every pair: nearly equal costs may add up.
    std::vector<size_t> before;
    for (size_t i = 0; i < row.runs.size(); ++i) {
      if (!row.runs[i]) continue;
      if (!std::isfinite(row.runs[i]->metric.value))
        return fmt::format("no finite value ({})", c_.runs[i].name);
      for (const size_t j : before) {
        const std::string reason =
            obstacle_between(c_.runs[j], *row.runs[j], c_.runs[i], *row.runs[i], c_.at);
        if (!reason.empty()) return reason;
      }
      before.push_back(i);
    }
    return "";
  }

  static void rank(MetricRow& row) {
    row.ranks.assign(row.groups.size(), 0);
    std::vector<size_t> order;
    for (size_t g = 0; g < row.groups.size(); ++g) {
      if (row.groups[g].count > 0) order.push_back(g);
    }
    if (order.size() < 2) return;
    const double sign = lower_is_better(row.metric) ? 1 : -1;
    for (const size_t g : order) {
      row.ranks[g] = 1 + std::count_if(order.begin(), order.end(), [&](size_t other) {
                       return sign * row.groups[other].mean < sign * row.groups[g].mean;
                     });
    }
  }

  const Comparison& c_;
};

double loss_at(const ComparedRun& run, const std::string& at, double cost) {
  double loss = std::nan("");
  for (const LogStep& step : run.log.steps) {
    if (cost_of(step.cost, at) > cost) break;
    if (const auto found = step.values.find("loss"); found != step.values.end())
      loss = found->second;
  }
  return loss;
}

}  // namespace

Comparison compare_runs(const std::vector<std::string>& names, const std::string& at) {
  Comparison out{.at = at};
  std::set<fs::path> folders;
  for (const std::string& name : names) {
    out.runs.push_back(read_run(name));
    SIGMA_CHECK(kUsage, folders.insert(fs::canonical(out.runs.back().folder)).second,
                "compare: expected each run once, got {} twice", name);
    SIGMA_CHECK(kUsage, at != "flops" || std::isfinite(out.runs.back().log.end().flops),
                "--at flops: {}: expected flops_per_image in its log, found none; use --at images",
                name);
  }
  name_runs(out.runs, names);
  out.groups = group_runs(out.runs);

  std::set<std::string> keys;
  for (const ComparedRun& run : out.runs) {
    for (const auto& [key, value] : run.settings) keys.insert(key);
  }
  for (const std::string& key : keys) {
    std::vector<std::string> values;
    for (const ComparedRun& run : out.runs) {
      const auto found = run.settings.find(key);
      values.push_back(found == run.settings.end() ? "-" : found->second);
    }
    if (std::set<std::string>(values.begin(), values.end()).size() > 1)
      out.settings.emplace_back(key, std::move(values));
  }

  out.common_cost = std::numeric_limits<double>::infinity();
  for (const ComparedRun& run : out.runs)
    out.common_cost = std::min(out.common_cost, cost_of(run.log.end(), at));
  for (const ComparedRun& run : out.runs) out.losses.push_back(loss_at(run, at, out.common_cost));
  out.metrics = MetricTable(out).rows();
  return out;
}

}  // namespace sigma
