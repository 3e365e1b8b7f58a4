#include "sigma/generator/network.h"

#include <torch/types.h>

#include <cmath>

#include "sigma/base/error.h"
#include "sigma/nn/gated_norm.h"
#include "sigma/trunk/patches.h"
#include "sigma/trunk/positions.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr int64_t kTimeFrequencies = 128;
constexpr double kEmbeddingStd = 0.02;
constexpr double kNormEps = 1e-6;

}  // namespace

void NetworkConfig::visit(ConfigVisitor& v) {
  v.field("num_classes", num_classes, in(0, 100000), "labels; 0 = unconditional");
  v.field("patch_size", patch_size, in(1, 64), "side of a patch of an image; latents ignore it");
  v.choice("second_time", second_time, {"s", "delta", "none"},
           "what the second time embedding takes: s, t - s, nothing");
  v.field("time_scale", time_scale, above(0, 1e5),
          "times are multiplied by it before they are embedded");
  v.choice(
      "embedding_init", embedding_init, {"dit", "unit"},
      "initial scale of time and label embeddings: 0.02 as published, or 1 for short trainings");
  v.table("trunk", trunk, "the transformer");
}

DiffusionTransformer::DiffusionTransformer(const NetworkConfig& config,
                                           const std::vector<int64_t>& sample_shape)
    : config_(config), tokens_(sample_shape.size() == 2) {
  SIGMA_CHECK(kUsage, tokens_ || sample_shape.size() == 3 || sample_shape.size() == 4,
              "network: expected samples [C,H,W], [C,F,H,W] or [L,C], got {} axes",
              sample_shape.size());
  if (tokens_) {
    channels_ = sample_shape[1];
    layout_.grid = {.frames = 1, .height = 1, .width = sample_shape[0]};
    config_.patch_size = 1;
    if (config_.trunk.position == "sincos2d") config_.trunk.position = "sincos1d";
  } else {
    channels_ = sample_shape[0];
    const size_t axes = sample_shape.size();
    layout_.grid = patch_grid(sample_shape[axes - 2], sample_shape[axes - 1], config.patch_size,
                              axes == 4 ? sample_shape[1] : 1);
  }
  const int64_t hidden = config.trunk.hidden_size;
  const int64_t width = channels_ * config_.patch_size * config_.patch_size;

  const bool unit = config.embedding_init == "unit";
  const auto linear = [&](int64_t in) {
    const double std = unit ? std::sqrt(2.0 / static_cast<double>(in)) : kEmbeddingStd;
    return std::make_shared<Linear>(in, hidden, true, Init::normal(std));
  };
  const auto embedder = [&](const char* name) {
    auto mlp = child<Module>(name)->register_module("mlp", std::make_shared<Module>());
    return std::vector{mlp->register_module("0", linear(2 * kTimeFrequencies)),
                       mlp->register_module("2", linear(hidden))};
  };
  x_embedder_ =
      child<Module>("x_embedder")->register_module("proj", std::make_shared<Linear>(width, hidden));
  t_embedder_ = embedder("t_embedder");
  if (config.second_time != "none") s_embedder_ = embedder("s_embedder");
  if (config.num_classes > 0) {
    struct Table : Module {
      Table(int64_t rows, int64_t columns, double std) {
        parameter("weight", {rows, columns}, Init::normal(std));
      }
    };
    auto table = child<Module>("y_embedder")
                     ->register_module("embedding_table",
                                       std::make_shared<Table>(config.num_classes + 1, hidden,
                                                               unit ? 1.0 : kEmbeddingStd));
    label_table_ = table->named_parameters()["weight"];
  }
  trunk_ = child<Trunk>("trunk", config_.trunk, layout_.grid, Conditioning::kAdaLnZero);
  auto final_layer = child<Module>("final_layer");
  final_linear_ = final_layer->register_module(
      "linear", std::make_shared<Linear>(hidden, width, true, Init::zero()));
  final_modulation_ =
      final_layer->register_module("adaLN_modulation", std::make_shared<Module>())
          ->register_module("1", std::make_shared<Linear>(hidden, 2 * hidden, true, Init::zero()));
}

Tensor DiffusionTransformer::embed_time(const std::vector<std::shared_ptr<Linear>>& mlp,
                                        const Tensor& v) const {
  const Tensor weight_like = mlp[0]->parameters()[0];
  const Tensor features =
      time_features(v * config_.time_scale, kTimeFrequencies).to(weight_like.options());
  return mlp[1]->forward(torch::silu(mlp[0]->forward(features)));
}

Output DiffusionTransformer::forward(const Tensor& x, const Tensor& t, const Tensor& s,
                                     const Condition& condition, const Context& context) {
  Tensor c = embed_time(t_embedder_, t);
  if (!s_embedder_.empty())
    c = c + embed_time(s_embedder_, config_.second_time == "delta" ? t - s : s);
  if (config_.num_classes > 0) {
    Tensor labels = condition.labels;
    if (!labels.defined()) labels = torch::full({x.size(0)}, config_.num_classes, torch::kInt64);
    if (labels.is_cpu() && labels.numel() > 0) {
      const int64_t low = labels.min().item<int64_t>();
      const int64_t high = labels.max().item<int64_t>();
      SIGMA_CHECK(kUsage, low >= 0 && high <= config_.num_classes,
                  "labels: expected in [0, {}], got {}", config_.num_classes, low < 0 ? low : high);
    }
    c = c + torch::embedding(label_table_, labels.to(label_table_.device()));
  }

  const Tensor rows = tokens_ ? x : patchify(x, config_.patch_size);
  const Tensor embedded = x_embedder_->forward(to_compute(rows, context));
  Output out = trunk_->forward(embedded, layout_, c, context);
  const auto m = final_modulation_->forward(torch::silu(c)).chunk(2, 1);
  const Tensor last = to_compute(gated_norm(out.value, {}, {}, m[0], m[1], kNormEps).y, context);
  const Tensor G = at_least_float(final_linear_->forward(last));
  out.value = tokens_ ? G : unpatchify(G, layout_.grid, config_.patch_size, channels_);
  return out;
}

double DiffusionTransformer::flops() const {
  const auto N = static_cast<double>(layout_.tokens());
  double sum = x_embedder_->flops(N) + final_linear_->flops(N) + final_modulation_->flops(1) +
               trunk_->flops(layout_);
  for (const auto& linear : t_embedder_) sum += linear->flops(1);
  for (const auto& linear : s_embedder_) sum += linear->flops(1);
  return sum;
}

}  // namespace sigma
