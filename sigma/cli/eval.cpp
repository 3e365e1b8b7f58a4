#include <optional>

#include "sigma/base/error.h"
#include "sigma/cli/cli.h"
#include "sigma/cli/eval_generator.h"
#include "sigma/cli/eval_models.h"
#include "sigma/cli/eval_record.h"
#include "sigma/cli/sampling.h"
#include "sigma/cli/tokenizer_metrics.h"
#include "sigma/train/load_generator.h"
#include "sigma/train/run.h"

namespace sigma {
namespace {

Json measure_settings(const std::vector<SamplerConfig>& samplers, int64_t seed,
                      GeneratorQuality& quality) {
  Json rows = Json::array();
  for (const SamplerConfig& sampler : samplers) {
    Json row = {
        {"steps", sampler.steps}, {"guidance", sampler.guidance.scale}, {"metrics", Json::array()}};
    for (const MetricResult& metric : quality.measure(sampler, seed))
      row["metrics"].push_back(metric.to_json());
    rows.push_back(std::move(row));
  }
  return rows;
}

std::string table_of(const Json& rows) {
  std::vector<std::vector<std::string>> table;
  for (const Json& row : rows) {
    if (table.empty()) {
      table.push_back({"steps", "guidance"});
      for (const Json& metric : row.at("metrics"))
        table[0].push_back(metric.at("name").get<std::string>());
    }
    table.push_back({row.at("steps").dump(), number_text(row.at("guidance"))});
    for (const Json& metric : row.at("metrics"))
      table.back().push_back(number_text(metric.at("value")));
  }
  std::string text = text_table(table);
  for (const Json& metric : rows.at(0).at("metrics")) {
    text += fmt::format("{}: {} samples", metric.at("name").get<std::string>(),
                        metric.at("n_samples").dump());
    if (metric.at("n_reference") != 0) {
      text += fmt::format(" against {} ({})", metric.at("reference").get<std::string>(),
                          metric.at("n_reference").dump());
    }
    const std::string floor = number_text(metric.at("floor"));
    if (floor != "-") text += "; real images: " + floor;
    const auto hash = metric.at("extractor_sha256").get<std::string>();
    if (!hash.empty())
      text += fmt::format("; extractor {} {}", metric.at("extractor").get<std::string>(),
                          hash.substr(0, 12));
    text += "\n";
  }
  return text;
}

}  // namespace

CommandResult run_eval(const EvalCommand& command, const GlobalOptions& global) {
  const std::filesystem::path run = find_run(command.run);
  const std::string task = load_config_toml(run / "config.toml").task;
  std::vector<std::string> known = generator_metrics();
  if (task == "tokenizer") known = tokenizer_metrics();
  if (task == "classifier") known = {"accuracy"};
  check_metric_names(command.metrics, known);
  SIGMA_CHECK(kUsage, command.batch >= 1 && command.count >= 0 && command.count != 1,
              "--count and --batch: expected at least 2 and 1");
  CommandResult out;
  if (task == "tokenizer") return recorded(eval_tokenizer(command, global, run), global);
  if (task == "classifier") return recorded(eval_classifier(command, global, run), global);
  const LoadedGenerator generator = load_generator(command.run, command.ema, global.device);
  const int64_t count = command.count > 0 ? command.count : generator.config.metrics.n_samples;
  const std::vector<SamplerConfig> samplers =
      samplers_of(generator, command.steps, command.guidance);
  std::optional<GeneratorQuality> quality(std::in_place, generator, command.metrics, count,
                                          command.batch, global.quiet);
  if (global.dry_run) {
    return planned(
        {(run / "log.jsonl").string()},
        fmt::format("metrics of {} samples for each of {} settings", count, samplers.size()));
  }
  const Json rows = measure_settings(samplers, command.seed, *quality);
  quality.reset();  // ends its line of progress
  out.result = {
      {"run", run.string()}, {"step", generator.step}, {"weights_sha256", generator.weights_sha256},
      {"ema", command.ema},  {"seed", command.seed},   {"rows", rows}};
  out.text = table_of(rows);
  return recorded(std::move(out), global);
}

}  // namespace sigma
