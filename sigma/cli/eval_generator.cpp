#include "sigma/cli/eval_generator.h"

#include <algorithm>
#include <cmath>

#include "sigma/base/error.h"
#include "sigma/cli/eval_models.h"
#include "sigma/data/dataset.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr const char* kExtractor = "fd_fashion_cnn";
constexpr int64_t kEnergySamples = 2000;  // the energy distance costs the square of it

}  // namespace

std::vector<std::string> generator_metrics() {
  return {kExtractor, "label_accuracy", "energy_pixels"};
}

void check_metric_names(const std::vector<std::string>& metrics,
                        const std::vector<std::string>& known) {
  for (const std::string& metric : metrics) {
    if (std::find(known.begin(), known.end(), metric) != known.end()) continue;
    const std::string near = did_you_mean(metric, known);
    throw Error(ErrorKind::kUsage,
                fmt::format("--metrics {}: expected {}", metric, fmt::join(known, ", ")),
                near.empty() ? "" : fmt::format("did you mean {}?", near));
  }
}

GeneratorQuality::GeneratorQuality(const LoadedGenerator& generator,
                                   std::vector<std::string> metrics, int64_t count, int64_t batch,
                                   bool quiet)
    : generator_(generator),
      metrics_(std::move(metrics)),
      count_(count),
      batch_(batch),
      device_(device_of(generator.config.train)),
      clips_(generator.model->image_shape().size() == 4),
      progress_(generator.config.log.interval, quiet) {
  if (!metrics_.empty() && wanted("label_accuracy")) {
    SIGMA_CHECK(kUsage, generator.config.generator.network.num_classes > 0,
                "--metrics label_accuracy: expected a generator with labels, {} has none",
                generator.run.string());
  }
  const bool images_only = !metrics_.empty() || !clips_;
  if (images_only && (wanted(kExtractor) || wanted("label_accuracy"))) {
    SIGMA_CHECK(kUsage, !clips_, "--metrics: {} and label_accuracy expect images, {} makes clips",
                kExtractor, generator_.run.string());
    extractor_ = load_feature_extractor(kExtractor, device_);
  }
}

bool GeneratorQuality::wanted(const char* metric) const {
  return metrics_.empty() || std::find(metrics_.begin(), metrics_.end(), metric) != metrics_.end();
}

std::vector<MetricResult> GeneratorQuality::measure(const SamplerConfig& sampler, int64_t seed) {
  const int64_t classes = generator_.config.generator.network.num_classes;
  std::vector<Tensor> parts;
  for (int64_t at = 0; at < count_; at += batch_) {
    const Tensor indices = torch::arange(at, std::min(count_, at + batch_), torch::kInt64);
    parts.push_back(generator_.model->sample_images(sampler, static_cast<uint64_t>(seed), indices,
                                                    class_labels(indices, classes),
                                                    compute_dtype_of(generator_.config.train)));
    progress_.show(
        fmt::format("sampling, {} steps: {}/{}", sampler.steps, at + parts.back().size(0), count_));
  }
  const Tensor images = crop_padding(torch::cat(parts), generator_.config.data.pad);
  std::vector<MetricResult> out;
  if (extractor_.net) {
    const auto result = extract(*extractor_.net, images, device_);
    if (wanted(kExtractor)) {
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
    if (wanted("label_accuracy") && classes > 0) {
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
  if ((clips_ || !metrics_.empty()) && wanted("energy_pixels")) out.push_back(energy(images));
  return out;
}

MetricResult GeneratorQuality::energy(const Tensor& images) {
  if (!real_.defined()) {
    DataConfig data = generator_.config.data;
    if (has_test_split(data)) data.split = "test";
    const auto dataset = open_dataset(data);
    real_name_ = dataset->info().description;
    const int64_t count = std::min(kEnergySamples, dataset->size());
    real_ = crop_padding(read_samples(*dataset, 0, count).data, generator_.config.data.pad);
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

}  // namespace sigma
