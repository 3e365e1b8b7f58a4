// Native sparse attention as a module: against dense attention, causality, every layout, errors.
#include "sigma/attention/sparse.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include "sigma/attention/dense.h"
#include "sigma/nn/rope.h"
#include "tests/testing/errors.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr int64_t kDim = 32;
constexpr int64_t kHeads = 4;

std::shared_ptr<SparseAttention> make(const SparseConfig& config, const Grid& grid,
                                      torch::ScalarType dtype = torch::kDouble) {
  auto attention = std::make_shared<SparseAttention>(config, kDim, kHeads, false, grid);
  initialize(*attention, 1);
  const torch::NoGradGuard no_grad;
  uint32_t site = 50;
  for (const auto& item : attention->named_parameters()) {
    if (item.key().ends_with("weight") || item.key().ends_with("pe"))
      item.value().add_(normal(item.value().sizes(), site++, torch::kFloat) * 0.1);
  }
  attention->to(dtype);
  return attention;
}

// Only the selected branch, and that fully.
void only_selected(SparseAttention& attention, int64_t branches) {
  const torch::NoGradGuard no_grad;
  auto p = attention.named_parameters();
  p["gate.weight"].zero_();
  Tensor bias = torch::full({kHeads, branches}, -1e3, p["gate.bias"].options());
  bias.select(1, 1).fill_(1e3);
  p["gate.bias"].copy_(bias.flatten());
}

std::shared_ptr<DenseAttention> dense_twin(SparseAttention& attention) {
  auto dense = std::make_shared<DenseAttention>(kDim, kHeads, false);
  dense->to(torch::kDouble);
  const torch::NoGradGuard no_grad;
  auto from = attention.named_parameters();
  auto to = dense->named_parameters();
  for (const std::string part : {"weight", "bias"}) {
    to["qkv." + part].copy_(torch::cat({from["q." + part], from["kv." + part]}));
    to["proj." + part].copy_(from["proj." + part]);
  }
  return dense;
}

struct Layout {
  TokenLayout layout;
  std::vector<int64_t> block;
};

std::vector<Layout> layouts() {
  return {{{.grid = {1, 1, 70}}, {16}},
          {{.grid = {1, 1, 70}, .pattern = Pattern::kCausal}, {16}},
          {{.before = 2, .grid = {1, 1, 37}, .after = 3, .pattern = Pattern::kCausal}, {8}},
          {{.grid = {1, 9, 7}}, {4, 4}},
          {{.before = 1, .grid = {1, 9, 7}, .after = 5}, {2, 4}},
          {{.grid = {3, 5, 6}}, {2, 2, 4}},
          {{.grid = {1, 1, 1}}, {64}},
          {{.grid = {1, 3, 3}}, {}}};
}

TEST(SparseAttention, AllBlocksAreDenseAttention) {
  for (const Layout& at : layouts()) {
    for (const bool rotary : {false, true}) {
      SparseConfig config{.block = at.block};
      config.selection.num_selected = 1024;
      auto attention = make(config, at.layout.grid);
      only_selected(*attention, 2);
      const auto dense = dense_twin(*attention);
      const Rope rope({}, kDim / kHeads, at.layout, torch::kDouble, torch::kCPU);
      const Tensor x = normal({2, at.layout.tokens(), kDim}, 3);
      const Rope* use = rotary ? &rope : nullptr;
      EXPECT_LE(
          error(attention->forward(x, at.layout, use, {}), dense->forward(x, at.layout, use, {})),
          1e-13)
          << at.layout.grid.frames << " " << at.layout.grid.height << " " << at.layout.grid.width;
    }
  }
}

TEST(SparseAttention, KernelsFollowTheDefinition) {
  for (const Layout& at : layouts()) {
    for (const std::string compress : {"mean", "mlp"}) {
      SparseConfig config{.block = at.block, .compress = compress, .num_kv_heads = 2};
      config.selection.num_selected = 3;
      config.separate_kv = compress == "mlp";
      if (at.layout.pattern == Pattern::kCausal) config.window = 11;
      const auto run = [&](torch::ScalarType dtype) {
        auto attention = make(config, at.layout.grid, dtype);
        const Tensor x = normal({2, at.layout.tokens(), kDim}, 3, torch::kFloat).to(dtype);
        const Tensor input = x.detach().requires_grad_();
        const Tensor out = attention->forward(input, at.layout, nullptr, {});
        out.square().sum().backward();
        std::vector<Tensor> result = {out.detach(), input.grad()};
        for (const Tensor& p : attention->parameters())
          result.push_back(p.grad().defined() ? p.grad() : torch::zeros_like(p));
        return result;
      };
      const auto exact = run(torch::kDouble);
      const auto fast = run(torch::kFloat);
      for (size_t i = 0; i < exact.size(); ++i) {
        // Sums of up to a hundred terms, a few products deep, in float32 on both ways.
        EXPECT_LE(error(fast[i], exact[i]), 2e-5 * (1 + exact[i].abs().max().item<double>()))
            << i << " " << compress << " " << at.layout.tokens();
      }
    }
  }
}

TEST(SparseAttention, LaterTokensChangeNoEarlierBit) {
  for (const auto dtype : {torch::kFloat, torch::kDouble}) {
    SparseConfig config{.block = {16}, .compress_size = 8, .compress_stride = 4};
    config.window = 9;
    config.selection.num_selected = 4;
    const TokenLayout layout{.grid = {1, 1, 100}, .pattern = Pattern::kCausal};
    auto attention = make(config, layout.grid, dtype);
    Tensor x = normal({1, 100, kDim}, 3).to(dtype);
    const Tensor before = attention->forward(x, layout, nullptr, {});
    x = x.clone();
    x.narrow(1, 61, 39).mul_(-2);
    const Tensor after = attention->forward(x, layout, nullptr, {});
    EXPECT_TRUE(torch::equal(before.narrow(1, 0, 61), after.narrow(1, 0, 61)));
    EXPECT_FALSE(torch::equal(before.narrow(1, 61, 39), after.narrow(1, 61, 39)));
  }
}

TEST(SparseAttention, GatesStartAsAMean) {
  SparseConfig config{.block = {8}, .compress = "mean"};
  SparseAttention attention(config, kDim, kHeads, false, {1, 1, 8});
  initialize(attention, 1);
  EXPECT_LE(error(torch::sigmoid(attention.named_parameters()["gate.bias"]),
                  torch::full({kHeads * 2}, 0.5)),
            1e-7);
  config.window = 4;
  SparseAttention three(config, kDim, kHeads, false, {1, 1, 8});
  initialize(three, 1);
  EXPECT_LE(error(torch::sigmoid(three.named_parameters()["gate.bias"]),
                  torch::full({kHeads * 3}, 1 / 3.)),
            1e-7);
}

TEST(SparseAttention, ListsHoldTheirOwnAndOtherBlocks) {
  SparseConfig config{.block = {2, 2}};
  config.selection.num_selected = 2;
  config.selection.local_radius = 0;
  const TokenLayout layout{.grid = {1, 6, 6}};
  auto attention = make(config, layout.grid);
  attention->forward(normal({1, 36, kDim}, 3), layout, nullptr, {});
  const Tensor lists = attention->last_lists();
  ASSERT_EQ(lists.sizes(), (std::vector<int64_t>{1, kHeads, 9, 2}));
  EXPECT_TRUE((lists == torch::arange(9).view({1, 1, 9, 1})).any(-1).all().item<bool>());
}

TEST(SparseAttention, ThePapersSettings) {
  const TokenLayout layout{.grid = {1, 1, 1300}, .pattern = Pattern::kCausal};
  const auto attention = make(nsa_paper(), layout.grid, torch::kFloat);
  const Tensor x = normal({1, 1300, kDim}, 3).to(torch::kFloat);
  EXPECT_TRUE(attention->forward(x, layout, nullptr, {}).isfinite().all().item<bool>());
  const Tensor last = attention->last_lists()[0][0][1299].to(torch::kInt64);
  // 16 of 21 blocks; the first, the own and the one before it are always there.
  ASSERT_EQ(last.size(0), 16);
  for (const int64_t block : {0, 19, 20}) EXPECT_TRUE((last == block).any().item<bool>()) << block;
  EXPECT_EQ((attention->last_lists()[0][0][100] >= 0).sum().item<int64_t>(), 2);
}

TEST(SparseAttention, RefusesByName) {
  const auto refused = [](const SparseConfig& config, const TokenLayout& layout,
                          const std::string& part, int64_t heads = kHeads) {
    testing::expect_contains(
        testing::error_of(ErrorKind::kUsage,
                          [&] {
                            SparseAttention attention(config, kDim, heads, false, layout.grid);
                            initialize(attention, 1);
                            attention.forward(torch::zeros({1, layout.tokens(), kDim}), layout,
                                              nullptr, {});
                          }),
        part);
  };
  const TokenLayout plane{.grid = {1, 4, 4}};
  const TokenLayout line{.grid = {1, 1, 32}};
  refused({.block = {4}}, plane, "2 sides, one an axis of the grid, got 1");
  refused({.block = {2, 2}, .compress_size = 4}, plane, "2 axes, got 4");
  refused({.block = {16}, .compress_size = 12, .compress_stride = 5}, line, "got 5, 12, 16");
  refused({.block = {16}, .compress_size = 32}, line, "32, 16");
  refused({.num_kv_heads = 3}, line, "num_heads = 4, got 3");
  refused({}, line, "hidden_size = 32, got 5", 5);
  refused({.block = {8}, .window = 4}, line, "window = 4");
  refused({}, {.grid = {1, 4, 4}, .pattern = Pattern::kCausal}, "a grid of 2 axes");
  refused({}, {.grid = {1, 1, 8}, .after = 2, .pattern = Pattern::kCausalAfter}, "causal_after");
  SparseConfig few{.block = {4}};
  few.selection.num_selected = 2;
  refused(few, {.grid = {1, 1, 32}, .pattern = Pattern::kCausal}, "num_selected");
}

}  // namespace
}  // namespace sigma
