// Multi-token attention as a module: a fresh one is dense attention, causality, layouts, gradients,
// errors.
#include "sigma/attention/multi_token.h"

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

std::shared_ptr<MultiTokenAttention> make(const MultiTokenConfig& config, const Grid& grid,
                                          double noise, torch::ScalarType dtype = torch::kDouble) {
  auto attention = std::make_shared<MultiTokenAttention>(config, kDim, kHeads, false, grid, 2);
  initialize(*attention, 1);
  const torch::NoGradGuard no_grad;
  uint32_t site = 50;
  for (const auto& item : attention->named_parameters())
    item.value().add_(normal(item.value().sizes(), site++, torch::kFloat) * noise);
  attention->to(dtype);
  return attention;
}

std::vector<TokenLayout> layouts() {
  return {{.grid = {1, 1, 37}},
          {.grid = {1, 1, 37}, .pattern = Pattern::kCausal},
          {.grid = {1, 6, 7}},
          {.before = 1, .grid = {1, 4, 5}, .after = 3},
          {.before = 1, .grid = {1, 1, 9}, .after = 4, .pattern = Pattern::kCausalAfter},
          {.grid = {3, 4, 4}}};
}

TEST(MultiTokenAttention, AFreshOneIsDenseAttention) {
  for (const TokenLayout& layout : layouts()) {
    const bool causal = layout.pattern == Pattern::kCausal;
    const auto attention = make(
        {.query_side = causal ? "past" : "centre", .pre_heads = 4, .norm = false, .gate = "none"},
        layout.grid, 0);
    DenseAttention dense(kDim, kHeads, false);
    dense.to(torch::kDouble);
    {
      const torch::NoGradGuard no_grad;
      auto from = attention->named_parameters();
      for (auto& item : dense.named_parameters()) item.value().copy_(from[item.key()]);
    }
    const Rope rope({}, kDim / kHeads, layout, torch::kDouble, torch::kCPU);
    const Tensor x = normal({2, layout.tokens(), kDim}, 3);
    EXPECT_LE(error(attention->forward(x, layout, &rope, {}), dense.forward(x, layout, &rope, {})),
              1e-14)
        << layout.tokens();
  }
}

TEST(MultiTokenAttention, KernelsFollowTheDefinition) {
  for (const TokenLayout& layout : layouts()) {
    MultiTokenConfig config{.query_side = layout.pattern == Pattern::kCausal ? "past" : "centre",
                            .pre_heads = 2,
                            .post_heads = 4,
                            .depth_scale = true};
    const auto run = [&](torch::ScalarType dtype) {
      const auto attention = make(config, layout.grid, 0.2, dtype);
      const Tensor x =
          normal({2, layout.tokens(), kDim}, 3, torch::kFloat).to(dtype).requires_grad_();
      const Tensor out = attention->forward(x, layout, nullptr, {});
      out.square().sum().backward();
      std::vector<Tensor> results = {out.detach(), x.grad()};
      for (const Tensor& p : attention->parameters()) results.push_back(p.grad());
      return results;
    };
    const auto exact = run(torch::kDouble);
    const auto fast = run(torch::kFloat);
    for (size_t i = 0; i < exact.size(); ++i) {
      EXPECT_LE(error(fast[i], exact[i]), 2e-5 * (1 + exact[i].abs().max().item<double>()))
          << i << " " << layout.tokens();
      EXPECT_GT(exact[i].abs().max().item<double>(), 0) << i;
    }
  }
}

TEST(MultiTokenAttention, LaterTokensChangeNoEarlierBit) {
  const TokenLayout layout{.grid = {1, 1, 100}, .pattern = Pattern::kCausal};
  const auto attention = make({.query_side = "past"}, layout.grid, 0.2, torch::kFloat);
  Tensor x = normal({1, 100, kDim}, 3, torch::kFloat);
  const Tensor before = attention->forward(x, layout, nullptr, {});
  x = x.clone();
  x.narrow(1, 61, 39).mul_(-2);
  const Tensor after = attention->forward(x, layout, nullptr, {});
  EXPECT_TRUE(torch::equal(before.narrow(1, 0, 61), after.narrow(1, 0, 61)));
  EXPECT_FALSE(torch::equal(before.narrow(1, 61, 39), after.narrow(1, 61, 39)));
}

TEST(MultiTokenAttention, RefusesByName) {
  const auto refused = [](const MultiTokenConfig& config, const TokenLayout& layout,
                          const std::string& part, int64_t heads = kHeads) {
    testing::expect_contains(
        testing::error_of(
            ErrorKind::kUsage,
            [&] {
              MultiTokenAttention attention(config, kDim, heads, false, layout.grid, 0);
              initialize(attention, 1);
              attention.forward(torch::zeros({1, layout.tokens(), kDim}), layout, nullptr, {});
            }),
        part);
  };
  const TokenLayout line{.grid = {1, 1, 32}};
  const TokenLayout plane{.grid = {1, 4, 4}};
  refused({.pre_kernel_q = {3}}, plane, "pre_kernel_q: expected 2 sides");
  refused({.post_kernel_k = {4}}, line, "post_kernel_k: expected odd sides, got 4");
  refused({.post_heads = 3}, line, "post_heads: expected a divisor of num_heads = 4, got 3");
  refused({}, line, "hidden_size = 32, got 5", 5);
  refused({.query_side = "past"}, plane, "a grid of 2 axes");
  refused({}, {.grid = {1, 1, 8}, .pattern = Pattern::kCausal}, "expects past, got centre");
  refused({}, {.grid = {1, 4, 4}, .pattern = Pattern::kCausal}, "a grid of 2 axes");
  TokenLayout masked = plane;
  masked.visible = torch::zeros({1, 16}, torch::kInt64);
  refused({}, masked, "masked layouts");
}

}  // namespace
}  // namespace sigma
