// `sigma compare`: its tables, and its result for programs.
#include <cmath>

#include "sigma/base/error.h"
#include "sigma/base/progress.h"
#include "sigma/cli/cli.h"
#include "sigma/cli/compare.h"
#include "sigma/cli/report_parts.h"
#include "sigma/io/files.h"

namespace sigma {
namespace {

std::string cost_text(double cost, const std::string& at) {
  if (!std::isfinite(cost)) return "-";
  if (at == "flops") return count_text(cost);
  return at == "seconds" ? fmt::format("{:.1f}", cost) : fmt::format("{:.0f}", cost);
}

const char* unit(const std::string& at) {
  if (at == "flops") return "FLOP";
  return at == "seconds" ? " s" : " images";
}

std::string setting_of(const ComparedRun& run, const char* key) {
  const auto found = run.settings.find(key);
  return found == run.settings.end() ? "-" : found->second;
}

Json to_json(const MetricRow& row, const Comparison& c) {
  Json out = {{"metric", row.metric},
              {"setting", row.setting},
              {c.at, row.cost},
              {"runs", Json::array()},
              {"groups", Json::array()}};
  for (size_t i = 0; i < row.runs.size(); ++i) {
    if (!row.runs[i]) continue;
    Json value = {{"run", c.runs[i].name},
                  {c.at, cost_of(row.runs[i]->cost, c.at)},
                  {"weights_sha256", row.runs[i]->weights_sha256}};
    value.update(row.runs[i]->metric.to_json());
    out["runs"].push_back(std::move(value));
  }
  for (size_t g = 0; g < row.groups.size(); ++g) {
    const Spread& spread = row.groups[g];
    if (spread.count == 0) continue;
    Json value = {{"group", g},
                  {"mean", spread.mean},
                  {"deviation", spread.deviation},
                  {"count", spread.count}};
    if (row.ranks[g] > 0) value["rank"] = row.ranks[g];
    out["groups"].push_back(std::move(value));
  }
  if (!row.obstacle.empty()) out["not_comparable"] = row.obstacle;
  return out;
}

Json to_json(const Comparison& c) {
  Json out = {{"at", c.at},
              {"common", c.common_cost},
              {"runs", Json::array()},
              {"groups", Json::array()},
              {"settings", Json::array()},
              {"metrics", Json::array()}};
  for (size_t i = 0; i < c.runs.size(); ++i) {
    const ComparedRun& run = c.runs[i];
    const Cost end = run.log.end();
    out["runs"].push_back({{"name", run.name},
                           {"run", run.folder.string()},
                           {"run_id", run.run_id},
                           {"group", run.group},
                           {"data_sha256", run.data_sha256},
                           {"step", end.step},
                           {"images", end.images},
                           {"flops", end.flops},
                           {"seconds", end.seconds},
                           {"loss_at_common", c.losses[i]}});
  }
  for (const RunGroup& group : c.groups) {
    Json names = Json::array();
    for (const size_t i : group.runs) names.push_back(c.runs[i].name);
    out["groups"].push_back(std::move(names));
  }
  for (const auto& [key, values] : c.settings)
    out["settings"].push_back({{"key", key}, {"values", values}});
  for (const MetricRow& row : c.metrics) out["metrics"].push_back(to_json(row, c));
  return out;
}

}  // namespace

TextTable runs_table(const Comparison& c) {
  TextTable out = {{"run", "seed", "steps", "images", "FLOP", "time",
                    fmt::format("loss at {}{}", cost_text(c.common_cost, c.at), unit(c.at))}};
  for (size_t i = 0; i < c.runs.size(); ++i) {
    const Cost end = c.runs[i].log.end();
    out.push_back({c.runs[i].name, setting_of(c.runs[i], "train.seed"), std::to_string(end.step),
                   cost_text(end.images, "images"), cost_text(end.flops, "flops"),
                   duration_text(end.seconds), number_text(c.losses[i])});
  }
  return out;
}

TextTable settings_table(const Comparison& c) {
  TextTable out = {{"setting"}};
  for (const ComparedRun& run : c.runs) out[0].push_back(run.name);
  for (const auto& [key, values] : c.settings) {
    out.push_back({key});
    out.back().insert(out.back().end(), values.begin(), values.end());
  }
  return out;
}

TextTable metrics_table(const Comparison& c) {
  TextTable out = {{"metric", "sampler", c.at, "runs", "mean", "deviation", "seeds", "rank"}};
  for (const MetricRow& row : c.metrics) {
    if (!row.obstacle.empty()) {
      for (size_t i = 0; i < row.runs.size(); ++i) {
        if (!row.runs[i]) continue;
        out.push_back({row.metric, row.setting, cost_text(cost_of(row.runs[i]->cost, c.at), c.at),
                       c.runs[i].name, number_text(row.runs[i]->metric.value), "-", "1", "-"});
      }
      continue;
    }
    for (size_t g = 0; g < row.groups.size(); ++g) {
      const Spread& spread = row.groups[g];
      if (spread.count == 0) continue;
      double cost = 0;
      std::string names;
      for (const size_t i : c.groups[g].runs) {
        if (!row.runs[i]) continue;
        cost += cost_of(row.runs[i]->cost, c.at);
        names += (names.empty() ? "" : ", ") + c.runs[i].name;
      }
      cost /= static_cast<double>(spread.count);
      out.push_back({row.metric, row.setting, cost_text(cost, c.at), names,
                     number_text(spread.mean), number_text(spread.deviation),
                     std::to_string(spread.count),
                     row.ranks[g] > 0 ? std::to_string(row.ranks[g]) : "-"});
    }
  }
  return out;
}

std::vector<std::string> obstacle_lines(const Comparison& c) {
  std::vector<std::string> out;
  for (const MetricRow& row : c.metrics) {
    if (row.obstacle.empty()) continue;
    out.push_back(fmt::format("{}{}: not comparable: {}", row.metric,
                              row.setting.empty() ? "" : ", " + row.setting, row.obstacle));
  }
  return out;
}

CommandResult run_compare(const CompareCommand& command, const GlobalOptions& global) {
  if (!command.html.empty()) check_output(command.html, global);
  const Comparison c = compare_runs(command.runs, command.at);
  CommandResult out;
  out.result = to_json(c);
  out.text = text_table(runs_table(c)) + "\n";
  out.text += c.settings.empty() ? "the same settings\n" : text_table(settings_table(c));
  if (c.metrics.empty()) out.text += "\nno metrics in the logs: sigma eval writes them\n";
  else out.text += "\n" + text_table(metrics_table(c));
  for (const std::string& line : obstacle_lines(c)) out.text += line + "\n";
  if (command.html.empty()) return out;
  if (global.dry_run) {
    out.result["would_write"] = command.html;
    out.text += fmt::format("would write {}\n", command.html);
    return out;
  }
  const std::string html = comparison_page(c, global.device);
  write_file_atomic(command.html, html);
  out.result["html"] = command.html;
  out.text += fmt::format("\n{}: {}\n", command.html, bytes_text(static_cast<double>(html.size())));
  return out;
}

}  // namespace sigma
