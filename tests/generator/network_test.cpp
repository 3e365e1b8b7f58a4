// The diffusion transformer: sizes, inputs, conditioning.
#include "sigma/generator/network.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>

#include "sigma/base/error.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

NetworkConfig small() {
  NetworkConfig config;
  config.num_classes = 4;
  config.trunk.hidden_size = 16;
  config.trunk.depth = 2;
  config.trunk.num_heads = 2;
  return config;
}

struct Net {
  std::shared_ptr<DiffusionTransformer> net;
  explicit Net(const NetworkConfig& config, const std::vector<int64_t>& shape = {2, 4, 6})
      : net(std::make_shared<DiffusionTransformer>(config, shape)) {
    initialize(*net, 1);
    net->to(torch::kDouble);
    torch::NoGradGuard no_grad;
    uint32_t site = 100;
    for (auto& p : net->parameters()) p.add_(normal(p.sizes(), ++site) * 0.2);
  }
  Tensor operator()(const Tensor& x, const Tensor& t, const Tensor& s, const Tensor& labels) const {
    return net->forward(x, t, s, {labels}, {}).value;
  }
};

const Tensor kT = torch::tensor({.9, .5, .2}, torch::kDouble);
const Tensor kS = torch::tensor({.1, .5, .0}, torch::kDouble);
const Tensor kLabels = torch::tensor({0, 3, 4}, torch::kInt64);

TEST(DiffusionTransformer, ParameterCountsOfThePublishedSizes) {
  struct Size {
    int64_t hidden, depth, heads, parameters;
  };
  // Constructors only allocate: the large ones never touch their memory.
  for (const auto& size : {Size{384, 12, 6, 33'105'424}, Size{768, 12, 12, 131'091'472},
                           Size{1024, 24, 16, 459'137'040}, Size{1152, 28, 16, 676'440'592}}) {
    NetworkConfig config;
    config.num_classes = 1000;
    config.trunk = {.hidden_size = size.hidden, .depth = size.depth, .num_heads = size.heads};
    const DiffusionTransformer net(config, {4, 32, 32});
    int64_t count = 0;
    for (const auto& p : net.parameters()) count += p.numel();
    EXPECT_EQ(count, size.parameters);
  }
}

TEST(DiffusionTransformer, NamesAreDits) {
  const DiffusionTransformer net(small(), {2, 4, 6});
  const auto names = net.named_parameters();
  for (const char* name : {"x_embedder.proj.weight", "t_embedder.mlp.0.weight",
                           "t_embedder.mlp.2.bias", "s_embedder.mlp.0.bias",
                           "y_embedder.embedding_table.weight", "trunk.blocks.1.attn.qkv.weight",
                           "final_layer.linear.weight", "final_layer.adaLN_modulation.1.bias"}) {
    EXPECT_TRUE(names.contains(name)) << name;
  }
  NetworkConfig one = small();
  one.second_time = "none";
  EXPECT_FALSE(
      DiffusionTransformer(one, {2, 4, 6}).named_parameters().contains("s_embedder.mlp.0.weight"));
}

TEST(DiffusionTransformer, StartsAtZero) {
  DiffusionTransformer net(small(), {2, 4, 6});
  initialize(net, 1);
  const Tensor G = net.forward(normal({3, 2, 4, 6}, 0, torch::kFloat), kT, kS, {kLabels}, {}).value;
  EXPECT_EQ(G.sizes(), (std::vector<int64_t>{3, 2, 4, 6}));
  EXPECT_EQ(G.abs().max().item<double>(), 0);
  EXPECT_EQ(net.named_parameters()["y_embedder.embedding_table.weight"].size(0), 5);
}

TEST(DiffusionTransformer, SecondTimeIsSOrTheDifference) {
  const Tensor x = normal({3, 2, 4, 6}, 0);
  NetworkConfig config = small();
  const Net s(config);
  config.second_time = "delta";
  const Net delta(config);
  config.second_time = "none";
  const Net none(config);
  EXPECT_LE(error(s(x, kT, kT - kS, kLabels), delta(x, kT, kS, kLabels)), 1e-13);
  EXPECT_GT(error(s(x, kT, kS, kLabels), delta(x, kT, kS, kLabels)), 1e-4);
  EXPECT_TRUE(torch::equal(none(x, kT, kS, kLabels), none(x, kT, kT, kLabels)));
  EXPECT_GT(error(none(x, kT, kS, kLabels), none(x, kS, kS, kLabels)), 1e-4);
}

TEST(DiffusionTransformer, TimesAreScaledInFloat64) {
  const Tensor x = normal({3, 2, 4, 6}, 0);
  NetworkConfig config = small();
  const Net thousand(config);
  config.time_scale = 1;
  const Net one(config);
  EXPECT_LE(error(thousand(x, kT, kS, kLabels), one(x, kT * 1000, kS * 1000, kLabels)), 1e-13);
  // .9137 has no float32: its rounding would move G by about 5e-6.
  const Tensor t = torch::full({3}, .9137, torch::kDouble);
  EXPECT_GT(error(thousand(x, t, kS, kLabels),
                  thousand(x, t.to(torch::kFloat).to(torch::kDouble), kS, kLabels)),
            1e-8);
}

TEST(DiffusionTransformer, LabelsAndTheNullLabel) {
  const Net net(small());
  const Tensor x = normal({3, 2, 4, 6}, 0);
  const Tensor null = torch::full({3}, 4, torch::kInt64);
  EXPECT_TRUE(torch::equal(net(x, kT, kS, {}), net(x, kT, kS, null)));
  EXPECT_GT(error(net(x, kT, kS, null), net(x, kT, kS, torch::zeros({3}, torch::kInt64))), 1e-4);
  for (const int64_t bad : {-1, 5}) {
    try {
      net(x, kT, kS, torch::full({3}, bad, torch::kInt64));
      FAIL();
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(std::to_string(bad)), std::string::npos);
    }
  }
}

TEST(DiffusionTransformer, SamplesDoNotSeeEachOther) {
  const Net net(small());
  const Tensor x = normal({3, 2, 4, 6}, 0);
  const Tensor all = net(x, kT, kS, kLabels);
  for (int64_t i = 0; i < 3; ++i) {
    EXPECT_LE(error(all.narrow(0, i, 1), net(x.narrow(0, i, 1), kT.narrow(0, i, 1),
                                             kS.narrow(0, i, 1), kLabels.narrow(0, i, 1))),
              1e-13);
  }
}

TEST(DiffusionTransformer, TokensInsteadOfImages) {
  const Net net(small(), {6, 3});
  const Tensor x = normal({3, 6, 3}, 0);
  EXPECT_EQ(net(x, kT, kS, kLabels).sizes(), x.sizes());
  EXPECT_EQ(net.net->named_parameters()["x_embedder.proj.weight"].sizes(),
            (std::vector<int64_t>{16, 3}));
  // Positions tell tokens apart.
  EXPECT_GT(error(net(x.flip(1), kT, kS, kLabels).flip(1), net(x, kT, kS, kLabels)), 1e-4);
}

TEST(DiffusionTransformer, TakesFloat32AndBfloat16) {
  DiffusionTransformer net(small(), {2, 4, 6});
  initialize(net, 1);
  {
    torch::NoGradGuard no_grad;
    uint32_t site = 100;
    for (auto& p : net.parameters()) p.add_(normal(p.sizes(), ++site, torch::kFloat) * 0.2);
  }
  const Tensor x = normal({3, 2, 4, 6}, 0, torch::kFloat);
  const Tensor f32 = net.forward(x, kT, kS, {kLabels}, {}).value;
  Context context;
  context.dtype = torch::kBFloat16;
  const Tensor bf16 = net.forward(x, kT, kS, {kLabels}, context).value;
  EXPECT_EQ(bf16.scalar_type(), torch::kFloat);
  EXPECT_LE(error(f32, bf16), 16 * 0x1p-8 * f32.abs().max().item<double>());
  net.to(torch::kDouble);
  const Tensor f64 = net.forward(x.to(torch::kDouble), kT, kS, {kLabels}, {}).value;
  EXPECT_EQ(f64.scalar_type(), torch::kDouble);
  EXPECT_LE(error(f64, f32), 2e-6 * f64.abs().max().item<double>());
}

TEST(DiffusionTransformer, UnitEmbeddingsStartAtUnitScale) {
  NetworkConfig config = small();
  config.num_classes = 2000;
  config.embedding_init = "unit";
  DiffusionTransformer net(config, {2, 4, 6});
  initialize(net, 1);
  const auto p = net.named_parameters();
  const auto expect_std = [&](const char* name, double std) {
    const double n = static_cast<double>(p[name].numel());
    EXPECT_NEAR(p[name].to(torch::kDouble).square().mean().item<double>(), std * std,
                5 * std * std * std::sqrt(2 / n))
        << name;
  };
  expect_std("y_embedder.embedding_table.weight", 1);
  expect_std("t_embedder.mlp.0.weight", std::sqrt(2 / 256.));
  expect_std("s_embedder.mlp.2.weight", std::sqrt(2 / 16.));
  config.embedding_init = "dit";
  DiffusionTransformer published(config, {2, 4, 6});
  initialize(published, 1);
  EXPECT_NEAR(
      published.named_parameters()["y_embedder.embedding_table.weight"].std().item<double>(), .02,
      1e-3);
}

TEST(DiffusionTransformer, Errors) {
  NetworkConfig config = small();
  EXPECT_THROW(DiffusionTransformer(config, {2, 5, 6}), Error);
  EXPECT_THROW(DiffusionTransformer(config, {2, 5, 6, 3}), Error);
  config.trunk.hidden_size = 18;  // not divisible by 4
  EXPECT_THROW(DiffusionTransformer(config, {2, 4, 6}), Error);
  config.trunk.hidden_size = 16;
  config.trunk.num_heads = 3;
  EXPECT_THROW(DiffusionTransformer(config, {2, 4, 6}), Error);
}

TEST(DiffusionTransformer, Flops) {
  NetworkConfig config = small();
  config.num_classes = 0;
  const DiffusionTransformer net(config, {2, 4, 6});
  const double N = 6;
  const double C = 16;
  const double embed = 2 * N * 8 * C * 2;  // in and out
  const double conditioning = 2 * 2 * (256 * C + C * C) + 2 * C * 2 * C + 2 * 2 * C * 6 * C;
  const double blocks = 2 * (2 * N * C * 4 * C + 4 * N * N * C + 2 * N * C * 8 * C);
  EXPECT_EQ(net.flops(), embed + conditioning + blocks);
}

}  // namespace
}  // namespace sigma
