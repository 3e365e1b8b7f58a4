#include "sigma/cli/eval_models.h"

#include <torch/types.h>

#include <cmath>

#include "sigma/base/error.h"
#include "sigma/metrics/feature_net.h"
#include "sigma/metrics/metric.h"
#include "sigma/train/ema.h"
#include "sigma/train/open_run.h"
#include "sigma/train/optimizer.h"
#include "sigma/train/run.h"

namespace sigma {
namespace {

using torch::Tensor;

struct Images {
  Tensor data;    // uint8 [N,C,Y,X]
  Tensor labels;  // int64 [N]
  std::string name;
};

Images read_split(DataConfig data, const std::string& split, int64_t limit) {
  data.split = split;
  const auto dataset = open_dataset(data);
  const int64_t count = limit > 0 ? std::min(limit, dataset->size()) : dataset->size();
  const Samples samples = read_samples(*dataset, 0, count);
  return {.data = samples.data, .labels = samples.labels, .name = data.kind + " " + split};
}

double accuracy_of(const Tensor& logits, const Tensor& labels) {
  return (logits.argmax(1) == labels).to(torch::kDouble).mean().item<double>();
}

}  // namespace

Tensor crop_padding(const Tensor& images, int64_t pad) {
  if (pad == 0) return images;
  const int64_t height = images.size(-2) - 2 * pad;
  const int64_t width = images.size(-1) - 2 * pad;
  return images.narrow(-2, pad, height).narrow(-1, pad, width).contiguous();
}

CommandResult eval_classifier(const EvalCommand& command, const GlobalOptions& global,
                              const std::filesystem::path& run) {
  if (!command.write_asset.empty()) check_output(command.write_asset, global);
  const OpenRun loaded = open_run(run.string(), "classifier", "main", global.device);
  if (global.dry_run) {
    std::vector<std::string> files = {(run / "log.jsonl").string()};
    if (!command.write_asset.empty()) files.push_back(command.write_asset);
    return planned(files, "the accuracy of a classifier");
  }
  const SafetensorsFile weights = loaded.weights();
  const std::vector<int64_t> shape = image_shape_of(weights);
  const int64_t classes = loaded.config.classifier.num_classes;
  FeatureNet net(shape.at(0), classes);
  load_tensors(named_state(net), weights);
  net.to(loaded.device);
  const Images test = read_split(loaded.config.data, "test", command.count);
  const auto result = extract(net, test.data, loaded.device);
  const double accuracy = accuracy_of(result.logits, test.labels);
  const MetricResult metric{.name = "accuracy",
                            .value = accuracy,
                            .extractor = "",
                            .extractor_sha256 = "",
                            .reference = test.name,
                            .n_reference = test.labels.numel(),
                            .n_samples = test.labels.numel(),
                            .floor = std::nan("")};
  CommandResult out;
  out.result = {{"run", run.string()},
                {"step", loaded.checkpoint.step()},
                {"weights_sha256", loaded.weights_sha256()},
                {"ema", "main"},
                {"metrics", Json::array({metric.to_json()})}};
  out.text = fmt::format("accuracy  {:.4f}  ({} images of {})\n", accuracy, test.labels.numel(),
                         test.name);
  if (command.write_asset.empty()) return out;

  const Images train = read_split(loaded.config.data, "train", 0);
  const FeatureStatistics reference =
      feature_statistics(extract(net, train.data, loaded.device).features);
  const double floor = frechet_distance(feature_statistics(result.features), reference);
  net.to(torch::kCPU);
  NamedTensors tensors = named_state(net);
  tensors.emplace_back("reference.mean", reference.mean);
  tensors.emplace_back("reference.covariance", reference.covariance);
  write_safetensors(
      command.write_asset, tensors,
      {{"format", "pt"},
       {"channels", std::to_string(shape.at(0))},
       {"num_classes", std::to_string(classes)},
       {"reference", train.name},
       {"reference_count", std::to_string(reference.count)},
       {"floor", fmt::format("{}", floor)},
       {"accuracy", fmt::format("{}", accuracy)},
       {"data_sha256", loaded.checkpoint.manifest.at("data_sha256").get<std::string>()},
       {"config_sha256", loaded.checkpoint.manifest.at("config_sha256").get<std::string>()}});
  out.result["asset"] = command.write_asset;
  out.result["floor"] = floor;
  out.text += fmt::format("wrote {}: Frechet distance of the test images to the reference {:.4g}\n",
                          command.write_asset, floor);
  return out;
}

}  // namespace sigma
