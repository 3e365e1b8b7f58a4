// `sigma report`: what a run's folder says, as one HTML file. The same folder gives the same bytes.
#include <algorithm>
#include <cmath>
#include <ctime>
#include <map>
#include <tuple>

#include "sigma/base/error.h"
#include "sigma/base/progress.h"
#include "sigma/cli/cli.h"
#include "sigma/cli/eval_record.h"
#include "sigma/cli/html.h"
#include "sigma/cli/report_parts.h"
#include "sigma/cli/svg_plot.h"
#include "sigma/io/files.h"
#include "sigma/train/config.h"
#include "sigma/train/run.h"

namespace sigma {
namespace {

namespace fs = std::filesystem;

struct Source {
  fs::path folder;
  Json info;  // run.json
  std::string config_toml;
  RunConfig config;
  RunLog log;
};

std::string text_of(const Json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

std::string time_text(const Json& seconds) {
  constexpr double kYear10000 = 253402300800;
  const double value = seconds.is_number() ? seconds.get<double>() : -1;
  if (!(value >= 0 && value < kYear10000)) return "-";
  const auto whole = static_cast<time_t>(value);
  std::tm parts{};
  char text[32];
  if (gmtime_r(&whole, &parts) == nullptr) return "-";
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &parts);
  return text;
}

std::string summary(const Source& run) {
  const Cost end = run.log.end();
  const int64_t total = run.config.train.steps();
  std::vector<std::pair<std::string, std::string>> facts = {
      {"Progress", fmt::format("{} of {} steps, {:.0f} images{}", end.step, total, end.images,
                               end.step >= total ? "; finished" : "; not finished")}};
  if (!run.log.steps.empty()) {
    facts.emplace_back("Time", duration_text(end.seconds));
    const auto& values = run.log.steps.back().values;
    if (const auto loss = values.find("loss"); loss != values.end())
      facts.emplace_back("Loss", fmt::format("{:.4g}", loss->second));
  }
  const Json parameters = run.log.of_start("parameters");
  if (parameters.is_number())
    facts.emplace_back("Parameters", count_text(parameters.get<double>()));
  if (std::isfinite(end.flops) && end.flops > 0)
    facts.emplace_back("Operations", count_text(end.flops) + "FLOP");
  const std::vector<std::pair<const char*, const char*>> of_start = {
      {"Device", "device"}, {"Version", "version"}, {"Commit", "git"}};
  for (const auto& [name, key] : of_start) {
    if (const Json value = run.log.of_start(key); !value.is_null())
      facts.emplace_back(name, text_of(value));
  }
  facts.emplace_back("Run", run.info.at("run_id").get<std::string>());
  facts.emplace_back("Started", time_text(run.info.value("created", Json())) + " UTC");
  if (run.log.broken > 0)
    facts.emplace_back("Log", fmt::format("{} broken lines passed over", run.log.broken));
  return html_facts(facts);
}

std::string curves(const RunLog& log) {
  std::string out;
  for (const std::string& name : curve_names({&log})) {
    const std::vector<Series> series = {curve_of(log, name, "images", name)};
    out += SvgPlot{.title = name, .x_label = "images", .series = series, .log_y = wants_log(series)}
               .html();
  }
  if (out.empty()) return "<p class=\"note\">No step has been logged.</p>\n";
  return "<div class=\"grid\">\n" + out + "</div>\n";
}

// Metrics of the same weights and counts with other noise are one row: their mean and deviation.
std::vector<std::vector<Measurement>> by_noise(const RunLog& log) {
  std::vector<std::vector<Measurement>> out;
  for (const Measurement& m : measurements(log)) {
    const auto same = std::find_if(out.begin(), out.end(), [&](const auto& row) {
      return row[0].key() == m.key() && row[0].weights_sha256 == m.weights_sha256 &&
             incomparable(row[0].metric, m.metric).empty();
    });
    if (same == out.end()) {
      out.push_back({m});
      continue;
    }
    // Measured again: the newer number stands.
    const auto again = std::find_if(same->begin(), same->end(),
                                    [&](const Measurement& old) { return old.seed == m.seed; });
    if (again == same->end()) same->push_back(m);
    else *again = m;
  }
  std::stable_sort(out.begin(), out.end(), [](const auto& a, const auto& b) {
    return std::tuple(a[0].metric.name, a[0].guidance, a[0].steps) <
           std::tuple(b[0].metric.name, b[0].guidance, b[0].steps);
  });
  return out;
}

std::string metrics(const RunLog& log) {
  const auto rows = by_noise(log);
  if (rows.empty()) return "<p class=\"note\">Not measured yet: sigma eval.</p>\n";
  std::vector<std::vector<std::string>> table = {{"metric", "sampler", "value", "deviation",
                                                  "noise seeds", "real data", "samples",
                                                  "at images", "note"}};
  std::vector<std::vector<std::string>> sources = {
      {"metric", "extractor", "SHA-256", "reference", "of", "weights", "measured by"}};
  std::map<std::string, Measurement> first;  // by key
  for (const auto& row : rows) {
    const Measurement& m = row[0];
    std::vector<double> values;
    for (const Measurement& one : row) values.push_back(one.metric.value);
    const Spread spread = spread_of(values);
    const auto found = first.try_emplace(m.key(), m).first;
    std::string note = m.ema == "none" ? "raw weights" : "";
    const std::string reason = incomparable(found->second.metric, m.metric);
    if (!reason.empty()) note += (note.empty() ? "" : "; ") + ("not comparable: " + reason);
    table.push_back({m.metric.name, m.setting, number_text(spread.mean),
                     number_text(spread.deviation), std::to_string(spread.count),
                     number_text(m.metric.floor), std::to_string(m.metric.n_samples),
                     fmt::format("{:.0f}", m.cost.images), note});
    std::vector<std::string> source = {m.metric.name,
                                       m.metric.extractor,
                                       m.metric.extractor_sha256.substr(0, 12),
                                       m.metric.reference,
                                       std::to_string(m.metric.n_reference),
                                       m.weights_sha256.substr(0, 12),
                                       m.version};
    if (std::find(sources.begin(), sources.end(), source) == sources.end())
      sources.push_back(std::move(source));
  }
  const bool notes = std::any_of(table.begin() + 1, table.end(),
                                 [](const auto& row) { return !row.back().empty(); });
  if (!notes) {
    for (auto& row : table) row.pop_back();
  }
  return html_table(table) + html_details("Where these numbers come from", html_table(sources));
}

std::string events(const RunLog& log) {
  std::vector<std::vector<std::string>> table = {{"time (UTC)", "event", "step", "more"}};
  for (const Json& event : log.events) {
    std::string more;
    for (const auto& [key, value] : event.items()) {
      if (key == "t" || key == "event" || key == "step") continue;
      more += fmt::format("{}{} {}", more.empty() ? "" : ", ", key, text_of(value));
    }
    table.push_back({time_text(event.value("t", Json())), event.at("event").get<std::string>(),
                     event.contains("step") ? event.at("step").dump() : "", more});
  }
  return html_details(fmt::format("{} lines", log.events.size()), html_table(table));
}

std::string data(const Source& run) {
  std::vector<std::pair<std::string, std::string>> facts = {{"Kind", run.config.data.kind}};
  const Json about = run.log.of_start("data");
  if (about.is_object()) {
    facts.emplace_back("Set", text_of(about.value("description", Json())));
    facts.emplace_back("Samples", about.value("count", Json()).dump());
    facts.emplace_back("Shape", about.value("shape", Json()).dump());
  }
  const std::string images = images_sha256(run.log, run.info);
  const auto trained_on = run.info.at("data_sha256").get<std::string>();
  facts.emplace_back("SHA-256 of the images", images);
  // Padded, or latents.
  if (trained_on != images) facts.emplace_back("SHA-256 as trained on", trained_on);
  return html_facts(facts);
}

std::string repeat(const Source& run) {
  std::vector<std::string> argv;
  for (const Json& argument : run.info.value("argv", Json::array()))
    argv.push_back(text_of(argument));
  return fmt::format("<pre>{}</pre>\n<p class=\"note\">sigma {}, commit {}.</p>\n",
                     escape_html(shell_command(argv)), escape_html(text_of(run.info.at("version"))),
                     escape_html(text_of(run.info.at("git"))));
}

std::string page(const Source& run) {
  const std::string name = run_name(run.folder);
  std::string kind = run.config.task;
  if (kind == "generator") kind += ", " + run.config.generator.objective.kind;
  std::string html =
      fmt::format("<h1>{}</h1>\n<p class=\"lead\">{}</p>\n", escape_html(name), escape_html(kind));
  html += summary(run);
  if (const std::string pictures = pictures_of(run.folder); !pictures.empty())
    html += html_section("Samples", pictures);
  html += html_section("Curves", curves(run.log));
  html += html_section("Metrics", metrics(run.log));
  html += html_section(
      "Settings", fmt::format("<pre class=\"columns\">{}</pre>\n", escape_html(run.config_toml)));
  html += html_section("Data", data(run));
  html += html_section("Events", events(run.log));
  html += html_section("The command that repeats it", repeat(run));
  return html_page(name + " - sigma report", html);
}

}  // namespace

CommandResult run_report(const ReportCommand& command, const GlobalOptions& global) {
  Source run;
  run.folder = find_run(command.run);
  run.info = Json::parse(read_file(run.folder / "run.json"));
  run.config_toml = read_file(run.folder / "config.toml");
  run.config = load_config_toml(run.folder / "config.toml");
  run.log = read_run_log(run.folder);
  const std::string html = page(run);
  if (command.out == "-") return {.result = {{"html", html}}, .text = html};
  const fs::path out = command.out.empty() ? run.folder / "report.html" : fs::path(command.out);
  // Its own place in the run it may take again.
  if (!command.out.empty()) check_output(command.out, global);
  if (global.dry_run) return planned({out.string()}, "a report of " + run.folder.string());
  write_file_atomic(out, html);
  return {
      .result = {{"file", out.string()}, {"bytes", html.size()}},
      .text = fmt::format("{}: {}\n", out.string(), bytes_text(static_cast<double>(html.size())))};
}

}  // namespace sigma
