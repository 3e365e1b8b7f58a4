#include "sigma/metrics/feature_net.h"

#include <torch/types.h>

#include <cmath>

#include "sigma/base/error.h"
#include "sigma/data/dataset.h"
#include "sigma/io/files.h"
#include "sigma/metrics/metric.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr int64_t kWidths[] = {64, 128, 128};
constexpr int64_t kFeature = 128;
constexpr int64_t kPooled = 2;
constexpr int64_t kBatch = 500;

struct Convolution : Module {
  Convolution(int64_t in, int64_t out) {
    const double bound = 1 / std::sqrt(9.0 * static_cast<double>(in));
    kernel = parameter("weight", {out, in, 3, 3}, Init::uniform(bound));
    bias = parameter("bias", {out}, Init::uniform(bound));
  }
  Tensor kernel, bias;
};

// Adaptive average pooling to kPooled x kPooled by its definition: torch's has no deterministic
// backward on a GPU.
Tensor adaptive_average(const Tensor& x) {
  std::vector<Tensor> cells;
  const auto window = [](const Tensor& t, int64_t axis, int64_t i) {
    const int64_t size = t.size(axis);
    const int64_t begin = i * size / kPooled;
    const int64_t end = ((i + 1) * size + kPooled - 1) / kPooled;
    return t.narrow(axis, begin, end - begin);
  };
  for (int64_t i = 0; i < kPooled; ++i) {
    for (int64_t j = 0; j < kPooled; ++j) {
      cells.push_back(window(window(x, 2, i), 3, j).mean({2, 3}));
    }
  }
  return torch::stack(cells, 2).flatten(1);  // channel, row, column
}

}  // namespace

FeatureNet::FeatureNet(int64_t channels, int64_t num_classes) {
  int64_t in = channels;
  for (size_t i = 0; i < std::size(kWidths); ++i) {
    const auto conv = child<Convolution>(fmt::format("conv{}", i + 1), in, kWidths[i]);
    kernels_.push_back(conv->kernel);
    biases_.push_back(conv->bias);
    in = kWidths[i];
  }
  const int64_t pooled = in * kPooled * kPooled;
  feature_ = child<Linear>("feature", pooled, kFeature, true,
                           Init::uniform(1 / std::sqrt(static_cast<double>(pooled))));
  logits_ = child<Linear>("logits", kFeature, num_classes, true,
                          Init::uniform(1 / std::sqrt(static_cast<double>(kFeature))));
}

FeatureNet::Result FeatureNet::forward(const Tensor& images) const {
  Tensor x = images;
  for (size_t i = 0; i < kernels_.size(); ++i) {
    x = torch::relu(torch::conv2d(x, kernels_[i], biases_[i], /*stride=*/1, /*padding=*/1));
    if (i + 1 < kernels_.size()) x = torch::max_pool2d(x, 2);
  }
  const Tensor features = torch::relu(feature_->forward(adaptive_average(x)));
  return {.features = features, .logits = logits_->forward(features)};
}

double FeatureNet::flops(int64_t height, int64_t width) const {
  double sum = feature_->flops(1) + logits_->flops(1);
  double area = static_cast<double>(height * width);
  for (const Tensor& kernel : kernels_) {
    sum += 2 * area * static_cast<double>(kernel.numel());
    area /= 4;
  }
  return sum;
}

FeatureExtractor load_feature_extractor(const std::string& name, torch::Device device) {
  const std::string path = find_asset(name + ".safetensors");
  const SafetensorsFile file(path);
  const auto number = [&](const char* key) {
    SIGMA_CHECK(kData, file.metadata().contains(key), "{}: expected metadata {}", path, key);
    return std::stod(file.metadata().at(key));
  };
  FeatureExtractor extractor;
  extractor.name = name;
  extractor.sha256 = sha256_file(path);
  const auto channels = static_cast<int64_t>(number("channels"));
  extractor.net =
      std::make_shared<FeatureNet>(channels, static_cast<int64_t>(number("num_classes")));
  const torch::NoGradGuard no_grad;
  for (auto& parameter : extractor.net->named_parameters()) {
    const Tensor stored = file.load(parameter.key());
    SIGMA_CHECK(kData, stored.sizes() == parameter.value().sizes(),
                "{}: tensor {} has another shape than the network", path, parameter.key());
    parameter.value().copy_(stored);
  }
  extractor.net->to(device);
  extractor.reference = {.mean = file.load("reference.mean"),
                         .covariance = file.load("reference.covariance"),
                         .count = static_cast<int64_t>(number("reference_count"))};
  extractor.reference_name = file.metadata().at("reference");
  extractor.floor = number("floor");
  extractor.accuracy = number("accuracy");
  return extractor;
}

FeatureNet::Result extract(const FeatureNet& net, const Tensor& images, torch::Device device) {
  const torch::NoGradGuard no_grad;
  std::vector<Tensor> features;
  std::vector<Tensor> logits;
  for (const Tensor& batch : images.split(kBatch)) {
    const auto result = net.forward(to_float(batch.to(device)));
    features.push_back(result.features.cpu());
    logits.push_back(result.logits.cpu());
  }
  return {.features = torch::cat(features), .logits = torch::cat(logits)};
}

}  // namespace sigma
