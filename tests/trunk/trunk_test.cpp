// Blocks and the trunk: selection of layers, conditioning, positions, losses that flow through.
#include "sigma/trunk/trunk.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include "sigma/base/error.h"
#include "sigma/base/random.h"
#include "sigma/trunk/positions.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

TrunkConfig small() {
  TrunkConfig config;
  config.hidden_size = 16;
  config.depth = 4;
  config.num_heads = 2;
  return config;
}

TokenLayout grid(int64_t y, int64_t x) {
  TokenLayout layout;
  layout.grid = {1, y, x};
  return layout;
}

void disturb(torch::nn::Module& module) {
  torch::NoGradGuard no_grad;
  uint32_t site = 500;
  for (auto& p : module.parameters()) p.add_(normal(p.sizes(), ++site, p.scalar_type()) * 0.1);
}

TEST(SelectLayers, WordsAndLists) {
  using Mask = std::vector<bool>;
  EXPECT_EQ(select_layers("all", 3, "k"), (Mask{true, true, true}));
  EXPECT_EQ(select_layers("odd", 5, "k"), (Mask{false, true, false, true, false}));
  EXPECT_EQ(select_layers("from 1", 3, "k"), (Mask{false, true, true}));
  EXPECT_EQ(select_layers("every 4th", 8, "k"),
            (Mask{false, false, false, true, false, false, false, true}));
  EXPECT_EQ(select_layers("every 2nd", 4, "k"), (Mask{false, true, false, true}));
  EXPECT_EQ(select_layers("every 3rd", 4, "k"), (Mask{false, false, true, false}));
  EXPECT_EQ(select_layers(std::vector<int64_t>{2, 0}, 3, "k"), (Mask{true, false, true}));
  EXPECT_EQ(select_layers(std::vector<int64_t>{}, 2, "k"), (Mask{false, false}));
  for (const char* bad : {"", "some", "every 0th", "every th", "every 4", "every -1th"}) {
    if (std::string(bad) == "every 4") continue;  // lenient or not
    EXPECT_THROW(select_layers(std::string(bad), 4, "trunk.mlp.layers"), Error) << bad;
  }
  try {
    select_layers(std::vector<int64_t>{4}, 4, "trunk.mlp.layers");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kUsage);
    EXPECT_NE(std::string(e.what()).find("trunk.mlp.layers"), std::string::npos);
  }
  EXPECT_THROW(select_layers(std::vector<int64_t>{-1}, 4, "k"), Error);
}

TEST(Trunk, AdaLnZeroStartsAsTheIdentityPlusPositions) {
  TrunkConfig config = small();
  Trunk trunk(config, {1, 3, 2}, Conditioning::kAdaLnZero);
  initialize(trunk, 1);
  const Tensor x = normal({2, 6, 16}, 0, torch::kFloat);
  const Tensor c = normal({2, 16}, 1, torch::kFloat);
  const Tensor out = trunk.forward(x, grid(3, 2), c, {}).value;
  EXPECT_LE(error(out, x + sincos_positions({1, 3, 2}, 16, 2).to(torch::kFloat)), 1e-6);

  config.position = "none";
  Trunk bare(config, {1, 3, 2}, Conditioning::kAdaLnZero);
  initialize(bare, 1);
  EXPECT_TRUE(torch::equal(bare.forward(x, grid(3, 2), c, {}).value, x));
}

TEST(Trunk, AdaLnZeroIsTheFormula) {
  TrunkConfig config = small();
  config.depth = 1;
  config.position = "none";
  config.mlp.activation = "gelu_tanh";
  Trunk trunk(config, {1, 2, 3}, Conditioning::kAdaLnZero);
  initialize(trunk, 1);
  trunk.to(torch::kDouble);
  disturb(trunk);
  const auto p = trunk.named_parameters();
  const auto linear = [&](const Tensor& x, const std::string& name) {
    return x.matmul(p["blocks.0." + name + ".weight"].t()) + p["blocks.0." + name + ".bias"];
  };
  const auto norm = [](const Tensor& x) {
    const Tensor centred = x - x.mean(-1, true);
    return centred / (centred.square().mean(-1, true) + 1e-6).sqrt();
  };
  const Tensor x = normal({2, 6, 16}, 0, torch::kDouble);
  const Tensor c = normal({2, 16}, 1, torch::kDouble);
  const auto m = linear(torch::silu(c), "adaLN_modulation.1").unsqueeze(1).chunk(6, -1);
  const auto heads = linear(norm(x) * (1 + m[1]) + m[0], "attn.qkv")
                         .view({2, 6, 3, 2, 8})
                         .permute({2, 0, 3, 1, 4});
  const Tensor weights =
      torch::softmax(heads[0].matmul(heads[1].transpose(-2, -1)) / std::sqrt(8.0), -1);
  Tensor h =
      x + m[2] * linear(weights.matmul(heads[2]).transpose(1, 2).reshape({2, 6, 16}), "attn.proj");
  h = h +
      m[5] * linear(torch::gelu(linear(norm(h) * (1 + m[4]) + m[3], "mlp.fc1"), "tanh"), "mlp.fc2");
  EXPECT_LE(error(trunk.forward(x, grid(2, 3), c, {}).value, h), 1e-13);
}

TEST(Trunk, ParameterNamesAreDits) {
  Trunk trunk(small(), {1, 2, 2}, Conditioning::kAdaLnZero);
  std::vector<std::string> first;
  for (const auto& item : trunk.named_parameters()) {
    if (item.key().starts_with("blocks.3.")) first.push_back(item.key().substr(9));
  }
  std::sort(first.begin(), first.end());
  EXPECT_EQ(first, (std::vector<std::string>{"adaLN_modulation.1.bias", "adaLN_modulation.1.weight",
                                             "attn.proj.bias", "attn.proj.weight", "attn.qkv.bias",
                                             "attn.qkv.weight", "mlp.fc1.bias", "mlp.fc1.weight",
                                             "mlp.fc2.bias", "mlp.fc2.weight"}));
}

TEST(Trunk, MoeLossesFlowThroughAndSumOverLayers) {
  TrunkConfig config = small();
  config.mlp.kind = "moe";
  config.mlp.layers = "odd";
  config.mlp.moe.num_experts = 4;
  Trunk two(config, {1, 2, 3}, Conditioning::kNone);
  initialize(two, 1);
  Context context;
  context.training = true;
  context.record = true;
  const Tensor x = normal({2, 6, 16}, 0, torch::kFloat);
  const Output out = two.forward(x, grid(2, 3), {}, context);
  // Near-even routing at the start: sum_i f_i P_i is about 1 a layer.
  ASSERT_TRUE(out.losses.contains("moe.balance"));
  EXPECT_NEAR(out.losses.at("moe.balance").item<double>(), 2 * 0.01, 2e-3);
  EXPECT_TRUE(out.statistics.contains("moe.empty_experts"));
  int64_t routers = 0;
  for (const auto& item : two.named_parameters()) routers += item.key().ends_with("router");
  EXPECT_EQ(routers, 2);
  EXPECT_TRUE(two.named_parameters().contains("blocks.1.mlp.router"));
  EXPECT_TRUE(two.named_parameters().contains("blocks.0.mlp.fc1.weight"));

  out.losses.at("moe.balance").backward();
  EXPECT_GT(two.named_parameters()["blocks.1.mlp.router"].grad().abs().max().item<double>(), 0);
  EXPECT_GT(two.named_parameters()["blocks.3.mlp.router"].grad().abs().max().item<double>(), 0);

  const torch::NoGradGuard no_grad;
  EXPECT_TRUE(two.forward(x, grid(2, 3), {}, context).losses.empty());
}

TEST(Trunk, LearnedPositionsAreAParameter) {
  TrunkConfig config = small();
  config.position = "learned";
  config.depth = 1;
  Trunk trunk(config, {1, 2, 3}, Conditioning::kAdaLnZero);
  initialize(trunk, 1);
  const Tensor pos = trunk.named_parameters()["pos_embed"];
  EXPECT_EQ(pos.sizes(), (std::vector<int64_t>{1, 6, 16}));
  EXPECT_NEAR(pos.std().item<double>(), 0.02, 5 * 0.02 / std::sqrt(2.0 * 96));
  const Tensor x = normal({2, 6, 16}, 0, torch::kFloat);
  EXPECT_LE(
      error(trunk.forward(x, grid(2, 3), normal({2, 16}, 1, torch::kFloat), {}).value, x + pos),
      1e-6);
}

TEST(Trunk, AdditivePositionsGoToGridTokensOnly) {
  TrunkConfig config = small();
  Trunk trunk(config, {1, 2, 2}, Conditioning::kAdaLnZero);
  initialize(trunk, 1);
  TokenLayout layout = grid(2, 2);
  layout.before = 1;
  layout.after = 2;
  const Tensor x = normal({1, 7, 16}, 0, torch::kFloat);
  const Tensor out = trunk.forward(x, layout, normal({1, 16}, 1, torch::kFloat), {}).value;
  EXPECT_TRUE(torch::equal(out.narrow(1, 0, 1), x.narrow(1, 0, 1)));
  EXPECT_TRUE(torch::equal(out.narrow(1, 5, 2), x.narrow(1, 5, 2)));
  EXPECT_LE(error(out.narrow(1, 1, 4),
                  x.narrow(1, 1, 4) + sincos_positions({1, 2, 2}, 16, 2).to(torch::kFloat)),
            1e-6);

  layout.visible =
      torch::tensor({{3, 1}}, torch::kInt64);  // a masked grid keeps each token's own position
  const Tensor masked =
      trunk.forward(x.narrow(1, 0, 5), layout, normal({1, 16}, 1, torch::kFloat), {}).value;
  const Tensor expected =
      sincos_positions({1, 2, 2}, 16, 2).index_select(0, layout.visible[0]).to(torch::kFloat);
  EXPECT_LE(error(masked.narrow(1, 1, 2), x.narrow(1, 1, 2) + expected), 1e-6);
}

TEST(Trunk, RotaryPositionsBreakTheSymmetryOfTokens) {
  for (const char* kind : {"axial", "mixed", "sequence", "none"}) {
    TrunkConfig config = small();
    config.position = "none";
    config.rope.kind = kind;
    Trunk trunk(config, {1, 2, 3}, Conditioning::kNone);
    initialize(trunk, 1);
    trunk.to(torch::kDouble);
    const Tensor x = normal({1, 6, 16}, 0, torch::kDouble);
    const double moved = error(trunk.forward(x.flip(1), grid(2, 3), {}, {}).value.flip(1),
                               trunk.forward(x, grid(2, 3), {}, {}).value);
    // Reversing all tokens keeps |p_q - p_k| but turns its sign: only without positions nothing
    // changes.
    if (std::string(kind) == "none") EXPECT_LE(moved, 1e-13);
    else EXPECT_GT(moved, 1e-4) << kind;
  }
}

TEST(Trunk, ATrunkServesSeveralLayoutsInTurn) {
  TrunkConfig config = small();
  config.position = "none";
  config.rope.kind = "axial";
  Trunk trunk(config, {1, 2, 3}, Conditioning::kNone);
  initialize(trunk, 1);
  const Tensor x = normal({1, 6, 16}, 0, torch::kFloat);
  const Tensor first = trunk.forward(x, grid(2, 3), {}, {}).value;
  TokenLayout prefixed = grid(2, 3);
  prefixed.before = 2;
  trunk.forward(normal({1, 8, 16}, 1, torch::kFloat), prefixed, {}, {});
  TokenLayout masked = grid(2, 3);
  masked.visible = torch::tensor({{5, 4, 3, 2, 1, 0}}, torch::kInt64);
  // A mask that shows everything in another order is a permutation of the tokens.
  EXPECT_LE(error(trunk.forward(x.flip(1), masked, {}, {}).value.flip(1), first), 1e-5);
  masked.visible =
      torch::tensor({{0, 1, 2, 3, 4, 5}}, torch::kInt64);  // the same shape, other tokens
  EXPECT_LE(error(trunk.forward(x, masked, {}, {}).value, first), 1e-5);
  EXPECT_TRUE(torch::equal(trunk.forward(x, grid(2, 3), {}, {}).value, first));
  trunk.to(torch::kDouble);  // tables follow the dtype
  EXPECT_LE(error(trunk.forward(x.to(torch::kDouble), grid(2, 3), {}, {}).value, first), 1e-5);
  EXPECT_THROW(trunk.forward(x, grid(3, 2), {}, {}), Error);
}

TEST(Trunk, ResidualStreamStaysFloat32UnderBfloat16) {
  Trunk trunk(small(), {1, 2, 3}, Conditioning::kAdaLnZero);
  initialize(trunk, 1);
  disturb(trunk);
  const Tensor x = normal({2, 6, 16}, 0, torch::kFloat);
  const Tensor c = normal({2, 16}, 1, torch::kFloat);
  Context bf16;
  bf16.dtype = torch::kBFloat16;
  const Tensor exact = trunk.forward(x, grid(2, 3), c, {}).value;
  const Tensor rough = trunk.forward(x, grid(2, 3), c, bf16).value;
  EXPECT_EQ(rough.scalar_type(), torch::kFloat);
  EXPECT_GT(error(rough, exact), 0);
  EXPECT_LE(error(rough, exact), 8 * 0x1p-8 * exact.abs().max().item<double>());
  trunk.to(torch::kDouble);
  EXPECT_EQ(trunk.forward(x.to(torch::kDouble), grid(2, 3), c.to(torch::kDouble), bf16)
                .value.scalar_type(),
            torch::kDouble);
}

TEST(Trunk, UnconditionedBlocksHaveAffineNorms) {
  Trunk trunk(small(), {1, 2, 2}, Conditioning::kNone);
  initialize(trunk, 1);
  EXPECT_TRUE(trunk.named_parameters().contains("blocks.0.norm1.weight"));
  EXPECT_FALSE(trunk.named_parameters().contains("blocks.0.adaLN_modulation.1.weight"));
  EXPECT_EQ(trunk.forward(torch::zeros({0, 4, 16}), grid(2, 2), {}, {}).value.sizes(),
            (std::vector<int64_t>{0, 4, 16}));
}

}  // namespace
}  // namespace sigma
