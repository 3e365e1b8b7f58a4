#include "tests/golden_runners/transformer.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/types.h>

#include "sigma/base/error.h"

namespace sigma::golden {

using torch::Tensor;

NetworkConfig network_config(const Json& options, const std::string& position) {
  require(options, "learned_sigma", {false});
  require(options, "class_dropout", {0});
  NetworkConfig config;
  const Json network = options.value("network", Json::object());
  config.num_classes = whole(options, "num_classes", 0);
  config.second_time = text(options, "second_time", "s");
  if (config.second_time != "s" && config.second_time != "delta" && config.second_time != "none") {
    throw Skip{"second_time " + config.second_time};
  }
  config.time_scale = number(options, "time_scale", 1000);
  config.patch_size = whole(network, "patch_size", 2);
  config.trunk.hidden_size = whole(network, "hidden_size", 32);
  config.trunk.depth = whole(network, "depth", 2);
  config.trunk.num_heads = whole(network, "num_heads", 2);
  config.trunk.mlp_ratio = number(network, "mlp_ratio", 4);
  config.trunk.mlp.activation = "gelu_tanh";
  config.trunk.attention.qk_norm = flag(network, "qk_norm", false);
  require(network, "attention", {"dense"});
  require(network, "mlp", {"dense"});
  config.trunk.position = position;
  return config;
}

std::string our_name(const std::string& published) {
  const bool trunk = published.starts_with("blocks.") || published == "pos_embed";
  return trunk ? "trunk." + published : published;
}

std::vector<int64_t> sample_shape(const Tensor& x) {
  return {x.sizes().begin() + 1, x.sizes().end()};
}

double bound64(const NetworkConfig& config) {
  return 1e-12 * std::max(1.0, static_cast<double>(config.trunk.depth) / 2);
}
double bound32(const NetworkConfig& config) {
  return 2e-6 * std::max(1.0, static_cast<double>(config.trunk.depth) / 2);
}

std::shared_ptr<DiffusionTransformer> make_network(const NetworkConfig& config,
                                                   const std::vector<int64_t>& sample_shape,
                                                   const GoldenFile& weights) {
  auto network = std::make_shared<DiffusionTransformer>(config, sample_shape);
  network->to(device(), torch::kDouble);
  const torch::NoGradGuard no_grad;
  auto parameters = network->named_parameters();
  std::set<std::string> missing;
  for (const auto& item : parameters) missing.insert(item.key());
  for (const std::string& name : weights.names()) {
    if (!name.starts_with("weight.")) continue;
    const std::string ours = our_name(name.substr(7));
    if (ours == "trunk.pos_embed" && config.trunk.position != "learned") continue;
    if (ours.starts_with("s_embedder") && config.second_time == "none") continue;
    Tensor* parameter = parameters.find(ours);
    SIGMA_CHECK(kData, parameter, "{}: the network has no parameter {}", name, ours);
    const Tensor value = weights.get(name);
    SIGMA_CHECK(kData, value.numel() == parameter->numel(), "{}: expected {} numbers, got {}", name,
                parameter->numel(), value.numel());
    parameter->copy_(value.view(
        parameter->sizes()));  // the patch kernel [C,c,p,p] is a row of each output channel
    missing.erase(ours);
  }
  SIGMA_CHECK(kData, missing.empty(), "weights: the file lacks {}", fmt::join(missing, ", "));
  return network;
}

void check_parameter_gradients(const GoldenFile& file, const DiffusionTransformer& network,
                               Report& report) {
  const auto parameters = network.named_parameters();
  const double total = file.has("grad_norm") ? file.get("grad_norm").item<double>() : 0;
  double square = 0;
  for (const auto& item : parameters) {
    if (item.key() == "trunk.pos_embed" || !item.value().grad().defined()) continue;
    square += item.value().grad().square().sum().item<double>();
  }
  if (file.has("grad_norm"))
    report.relative("grad_norm", torch::full({1}, std::sqrt(square), torch::kDouble),
                    file.get("grad_norm"), 1e-12);
  for (const std::string& name : file.names()) {
    if (!name.starts_with("grad.")) continue;
    const Tensor* parameter = parameters.find(our_name(name.substr(5)));
    if (!parameter || !parameter->grad().defined()) {
      report.is_true(name + ": no such gradient", false);
      continue;
    }
    const Tensor expected = file.get(name);
    // Rounded to float32 elementwise; tensors whose gradient nearly vanishes are measured against
    // the whole.
    report.by_norm(name, parameter->grad().view(expected.sizes()), expected, 1e-6, 1e-7 * total);
  }
}

Output Recorder::forward(const Tensor& x, const Tensor& time, const Tensor& second,
                         const Condition& condition, const Context& context) {
  input = x;
  t = time;
  s = second;
  Output out = inner_.forward(x, time, second, condition, context);
  G = out.value;
  if (G.requires_grad()) G.retain_grad();
  return out;
}

}  // namespace sigma::golden
