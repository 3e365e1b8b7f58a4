#include <torch/types.h>

#include <algorithm>
#include <cmath>

#include "sigma/base/error.h"
#include "sigma/base/progress.h"
#include "sigma/cli/cli.h"
#include "sigma/cli/eval_models.h"
#include "sigma/cli/eval_record.h"
#include "sigma/cli/tokenizer_metrics.h"
#include "sigma/data/dataset.h"
#include "sigma/io/checkpoint.h"
#include "sigma/metrics/feature_net.h"
#include "sigma/metrics/metric.h"
#include "sigma/train/load_generator.h"
#include "sigma/train/run.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr const char* kExtractor = "fd_fashion_cnn";
constexpr int64_t kEnergySamples = 2000;  // the energy distance costs the square of it

bool wanted(const EvalCommand& command, const char* metric) {
  return command.metrics.empty() ||
         std::find(command.metrics.begin(), command.metrics.end(), metric) != command.metrics.end();
}

class GeneratorEvaluation {
 public:
  GeneratorEvaluation(const EvalCommand& command, const GlobalOptions& global)
      : command_(command),
        generator_(load_generator(command.run, command.ema, global.device)),
        device_(device_of(generator_.config.train)),
        progress_(generator_.config.log.interval, global.quiet) {
    count_ = command.count > 0 ? command.count : generator_.config.metrics.n_samples;
    clips_ = generator_.model->image_shape().size() == 4;
    const bool images_only = !command.metrics.empty() || !clips_;
    if (images_only && (wanted(command, kExtractor) || wanted(command, "label_accuracy"))) {
      SIGMA_CHECK(kUsage, !clips_, "--metrics: {} and label_accuracy expect images, {} makes clips",
                  kExtractor, generator_.run.string());
      extractor_ = load_feature_extractor(kExtractor, device_);
    }
  }

  Json run() {
    Json rows = Json::array();
    const SamplerConfig& own = generator_.config.generator.sampler;
    const std::vector<int64_t> steps =
        command_.steps.empty() ? std::vector{own.steps} : command_.steps;
    const std::vector<double> scales =
        command_.guidance.empty() ? std::vector{own.guidance.scale} : command_.guidance;
    for (const double scale : scales) {
      for (const int64_t n : steps) {
        SamplerConfig sampler = own;
        sampler.steps = n;
        sampler.guidance.scale = scale;
        Json row = {{"steps", n}, {"guidance", scale}, {"metrics", Json::array()}};
        for (const MetricResult& metric : measure(sampler))
          row["metrics"].push_back(metric.to_json());
        rows.push_back(std::move(row));
      }
    }
    progress_.end_line();
    return rows;
  }

  const LoadedGenerator& generator() const { return generator_; }

 private:
  std::vector<MetricResult> measure(const SamplerConfig& sampler) {
    const int64_t classes = generator_.config.generator.network.num_classes;
    std::vector<Tensor> parts;
    for (int64_t at = 0; at < count_; at += command_.batch) {
      const Tensor indices =
          torch::arange(at, std::min(count_, at + command_.batch), torch::kInt64);
      parts.push_back(generator_.model->sample_images(sampler, static_cast<uint64_t>(command_.seed),
                                                      indices, class_labels(indices, classes),
                                                      compute_dtype_of(generator_.config.train)));
      progress_.show(fmt::format("sampling, {} steps: {}/{}", sampler.steps,
                                 at + parts.back().size(0), count_));
    }
    const Tensor images = crop_padding(torch::cat(parts), generator_.config.data.pad);
    std::vector<MetricResult> out;
    if (extractor_.net) {
      const auto result = extract(*extractor_.net, images, device_);
      if (wanted(command_, kExtractor)) {
        out.push_back(
            {.name = kExtractor,
             .value = frechet_distance(feature_statistics(result.features), extractor_.reference),
             .extractor = extractor_.name,
             .extractor_sha256 = extractor_.sha256,
             .reference = extractor_.reference_name,
             .n_reference = extractor_.reference.count,
             .n_samples = count_,
             .floor = extractor_.floor});
      }
      if (wanted(command_, "label_accuracy") && classes > 0) {
        const Tensor asked = class_labels(torch::arange(count_, torch::kInt64), classes);
        out.push_back(
            {.name = "label_accuracy",
             .value = (result.logits.argmax(1) == asked).to(torch::kDouble).mean().item<double>(),
             .extractor = extractor_.name,
             .extractor_sha256 = extractor_.sha256,
             .reference = "the asked label",
             .n_reference = 0,
             .n_samples = count_,
             .floor = extractor_.accuracy});
      }
    }
    // Of images only when asked for by name: it reads the data set.
    if ((clips_ || !command_.metrics.empty()) && wanted(command_, "energy_pixels"))
      out.push_back(energy(images));
    return out;
  }

  MetricResult energy(const Tensor& images) {
    if (!real_.defined()) {
      DataConfig data = generator_.config.data;
      if (has_test_split(data)) data.split = "test";
      const auto dataset = open_dataset(data);
      real_name_ = dataset->info().description;
      std::vector<Tensor> list;
      for (int64_t i = 0; i < std::min(kEnergySamples, dataset->size()); ++i)
        list.push_back(dataset->get(i).data);
      real_ = crop_padding(torch::stack(list), generator_.config.data.pad);
    }
    const Tensor fake = images.narrow(0, 0, std::min(kEnergySamples, images.size(0)));
    const auto flat = [](const Tensor& x) { return to_float(x).flatten(1).to(torch::kDouble); };
    return {.name = "energy_pixels",
            .value = energy_distance(flat(fake), flat(real_)),
            .extractor = "",
            .extractor_sha256 = "",
            .reference = real_name_,
            .n_reference = real_.size(0),
            .n_samples = fake.size(0),
            .floor = std::nan("")};
  }

  const EvalCommand& command_;
  LoadedGenerator generator_;
  torch::Device device_;
  bool clips_ = false;
  Progress progress_;
  int64_t count_ = 0;
  FeatureExtractor extractor_;
  Tensor real_;
  std::string real_name_;
};

std::string number_text(const Json& value) {
  return value.is_number() ? fmt::format("{:.4g}", value.get<double>()) : "-";
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
    if (metric.at("floor").is_number())
      text += fmt::format("; real images: {}", number_text(metric.at("floor")));
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
  std::vector<std::string> known = {kExtractor, "label_accuracy", "energy_pixels"};
  if (task == "tokenizer") known = tokenizer_metrics();
  if (task == "classifier") known = {"accuracy"};
  for (const std::string& metric : command.metrics) {
    if (std::find(known.begin(), known.end(), metric) != known.end()) continue;
    const std::string near = did_you_mean(metric, known);
    throw Error(ErrorKind::kUsage,
                fmt::format("--metrics {}: expected {}", metric, fmt::join(known, ", ")),
                near.empty() ? "" : fmt::format("did you mean {}?", near));
  }
  SIGMA_CHECK(kUsage, command.batch >= 1 && command.count >= 0 && command.count != 1,
              "--count and --batch: expected at least 2 and 1");
  CommandResult out;
  if (task == "tokenizer") return recorded(eval_tokenizer(command, global, run));
  if (task == "classifier") return recorded(eval_classifier(command, global, run));
  GeneratorEvaluation evaluation(command, global);
  const Json rows = evaluation.run();
  out.result = {{"run", run.string()},
                {"step", evaluation.generator().step},
                {"weights_sha256", evaluation.generator().weights_sha256},
                {"ema", command.ema},
                {"seed", command.seed},
                {"rows", rows}};
  out.text = table_of(rows);
  return recorded(std::move(out));
}

}  // namespace sigma
