// Dense attention: the definition, the fast paths against it, and the layer.
#include "sigma/attention/dense.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include <limits>

#include "sigma/attention/attention.h"
#include "sigma/base/error.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

/// softmax(q k^T / sqrt(D)) v over the pairs of `allowed` [N,N], written out.
Tensor masked(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& allowed) {
  const double scale = 1 / std::sqrt(static_cast<double>(q.size(-1)));
  const Tensor scores =
      (q.matmul(k.transpose(-2, -1)) * scale).masked_fill(allowed.logical_not(), -1e300);
  const Tensor weights = (scores - std::get<0>(scores.max(-1, true))).exp();
  return (weights / weights.sum(-1, true)).matmul(v);
}

Tensor all_pairs(int64_t N) { return torch::ones({N, N}, torch::kBool); }
Tensor causal_pairs(int64_t N) { return all_pairs(N).tril(); }

/// Rounding of scores moves a weight by eps |score|, and the sum of N products by about sqrt(N)
/// eps.
double bound(torch::ScalarType dtype, const Tensor& q, const Tensor& k, const Tensor& v) {
  const double eps = dtype == torch::kFloat ? std::numeric_limits<float>::epsilon()
                                            : std::numeric_limits<double>::epsilon();
  const double score = q.matmul(k.transpose(-2, -1)).abs().max().item<double>();
  return 8 * eps * (1 + score) * v.abs().max().item<double>();
}

TEST(Attention, ReferenceIsTheDefinition) {
  for (const int64_t N : {1, 2, 7, 33}) {
    const Tensor q = normal({2, 3, N, 8}, 0);
    const Tensor k = normal({2, 3, N, 8}, 1);
    const Tensor v = normal({2, 3, N, 5}, 2);  // Dv != D
    EXPECT_LE(error(attention_reference(q, k, v, false), masked(q, k, v, all_pairs(N))),
              bound(torch::kDouble, q, k, v));
    EXPECT_LE(error(attention_reference(q, k, v, true), masked(q, k, v, causal_pairs(N))),
              bound(torch::kDouble, q, k, v));
  }
}

TEST(Attention, FastPathsMatchTheReference) {
  for (const auto dtype : {torch::kDouble, torch::kFloat}) {
    for (const int64_t N : {1, 3, 16, 31, 32, 64, 65, 200}) {
      for (const bool causal : {false, true}) {
        const Tensor q = normal({2, 2, N, 16}, 0) * 2;
        const Tensor k = normal({2, 2, N, 16}, 1) * 2;
        const Tensor v = normal({2, 2, N, 16}, 2);
        const Tensor expected = attention_reference(q, k, v, causal);
        const Tensor out = dense_attention(q.to(dtype), k.to(dtype), v.to(dtype), causal);
        EXPECT_EQ(out.scalar_type(), dtype);
        EXPECT_LE(error(out, expected), bound(dtype, q, k, v)) << "N " << N << " causal " << causal;
      }
    }
  }
}

TEST(Attention, NonContiguousInputs) {
  for (const int64_t N : {6, 100}) {
    const Tensor q = normal({2, N, 3, 8}, 0).transpose(1, 2);
    const Tensor k = normal({2, N, 3, 16}, 1).transpose(1, 2).slice(-1, 0, 16, 2);
    const Tensor v = normal({2, 3, 8, N}, 2).transpose(2, 3);
    const Tensor expected =
        attention_reference(q.contiguous(), k.contiguous(), v.contiguous(), false);
    EXPECT_LE(error(dense_attention(q, k, v, false), expected), bound(torch::kDouble, q, k, v));
    EXPECT_LE(error(attention_reference(q, k, v, false), expected), bound(torch::kDouble, q, k, v));
  }
}

TEST(Attention, EmptyBatchGivesEmptyOutput) {
  for (const int64_t N : {4, 100}) {
    const Tensor q = torch::empty({0, 2, N, 8});
    EXPECT_EQ(dense_attention(q, q, q, false).sizes(), q.sizes());
    EXPECT_EQ(attention_reference(q, q, q, true).sizes(), q.sizes());
  }
}

TEST(Attention, LargeScoresDoNotOverflow) {
  const Tensor q = normal({1, 1, 5, 8}, 0, torch::kFloat) * 1e4;
  const Tensor v = normal({1, 1, 5, 8}, 1, torch::kFloat);
  EXPECT_TRUE(attention_reference(q, q, v, false).isfinite().all().item<bool>());
  EXPECT_TRUE(attention_reference(q, q, v, true).isfinite().all().item<bool>());
}

struct Layer {
  std::shared_ptr<DenseAttention> attention;
  Tensor x;
  TokenLayout layout;

  explicit Layer(bool qk_norm, Pattern pattern = Pattern::kFull) {
    layout.before = 2;
    layout.grid = {1, 2, 3};
    layout.after = 4;
    layout.pattern = pattern;
    attention = std::make_shared<DenseAttention>(16, 2, qk_norm);
    initialize(*attention, 3);
    attention->to(torch::kDouble);
    torch::NoGradGuard no_grad;
    for (auto& p : attention->parameters()) p.add_(normal(p.sizes(), 40) * 0.1);
    x = normal({3, layout.tokens(), 16}, 5);
  }

  /// The layer written out, with `allowed` as its mask.
  Tensor direct(const Rope* rope, const Tensor& allowed) {
    const auto p = attention->named_parameters();
    const int64_t N = layout.tokens();
    const Tensor qkv = x.matmul(p["qkv.weight"].t()) + p["qkv.bias"];
    const auto head = [&](int64_t part) {
      return qkv.narrow(-1, part * 16, 16).view({3, N, 2, 8}).transpose(1, 2);
    };
    Tensor q = head(0);
    Tensor k = head(1);
    if (p.contains("q_norm.weight")) {
      const auto rms = [](const Tensor& a, const Tensor& w) {
        return a / (a.square().mean(-1, true) + 1e-6).sqrt() * w;
      };
      q = rms(q, p["q_norm.weight"]);
      k = rms(k, p["k_norm.weight"]);
    }
    if (rope) {
      q = rotate_pairs(q, rope->table().cos, rope->table().sin, true);
      k = rotate_pairs(k, rope->table().cos, rope->table().sin, true);
    }
    const Tensor out = masked(q, k, head(2), allowed).transpose(1, 2).reshape({3, N, 16});
    return out.matmul(p["proj.weight"].t()) + p["proj.bias"];
  }

  Tensor forward(const Rope* rope) { return attention->forward(x, layout, rope, Context{}); }
};

TEST(DenseAttention, IsProjectionsAroundAttention) {
  for (const bool qk_norm : {false, true}) {
    Layer layer(qk_norm);
    const Rope rope({}, 8, layer.layout, torch::kDouble, torch::kCPU);
    EXPECT_LE(error(layer.forward(nullptr), layer.direct(nullptr, all_pairs(12))), 1e-13);
    EXPECT_LE(error(layer.forward(&rope), layer.direct(&rope, all_pairs(12))), 1e-13);
    EXPECT_GT(error(layer.forward(&rope), layer.forward(nullptr)), 1e-4);

    // In float32 the rows are short enough for their own kernel; sums of 16 products, three deep.
    const Tensor exact = layer.direct(&rope, all_pairs(12));
    layer.attention->to(torch::kFloat);
    layer.x = layer.x.to(torch::kFloat);
    const Rope narrow({}, 8, layer.layout, torch::kFloat, torch::kCPU);
    EXPECT_LE(error(layer.forward(&narrow).to(torch::kDouble), exact),
              3 * 4 * std::numeric_limits<float>::epsilon() * exact.abs().max().item<double>());
  }
}

TEST(DenseAttention, CausalPatterns) {
  Layer causal(false, Pattern::kCausal);
  EXPECT_LE(error(causal.forward(nullptr), causal.direct(nullptr, causal_pairs(12))), 1e-13);

  Layer after(true, Pattern::kCausalAfter);
  Tensor allowed = torch::zeros({12, 12}, torch::kBool);
  for (int64_t i = 0; i < 12; ++i) {
    for (int64_t j = 0; j < 12; ++j) allowed[i][j] = i < 8 ? j < 8 : j <= i;
  }
  const Rope rope({}, 8, after.layout, torch::kDouble, torch::kCPU);
  EXPECT_LE(error(after.forward(&rope), after.direct(&rope, allowed)), 1e-13);
}

TEST(DenseAttention, CausalAfterIgnoresLaterLatents) {
  Layer layer(false, Pattern::kCausalAfter);
  const Tensor before = layer.forward(nullptr);
  layer.x.narrow(1, 10, 2).add_(1);  // latents 2 and 3 of 4
  const Tensor moved = layer.forward(nullptr);
  EXPECT_TRUE(torch::equal(moved.narrow(1, 0, 10), before.narrow(1, 0, 10)));
  EXPECT_GT(error(moved.narrow(1, 10, 2), before.narrow(1, 10, 2)), 1e-3);
}

TEST(DenseAttention, OneTokenAndEmptyBatch) {
  DenseAttention attention(8, 2, false);
  initialize(attention, 1);
  TokenLayout one;
  one.grid = {1, 1, 1};
  const Tensor x = normal({2, 1, 8}, 0, torch::kFloat);
  const auto p = attention.named_parameters();
  const Tensor v = (x.matmul(p["qkv.weight"].t()) + p["qkv.bias"]).narrow(-1, 16, 8);
  EXPECT_LE(error(attention.forward(x, one, nullptr, {}), v.matmul(p["proj.weight"].t())), 1e-6);
  EXPECT_EQ(attention.forward(x.narrow(0, 0, 0), one, nullptr, {}).sizes(),
            (std::vector<int64_t>{0, 1, 8}));
}

TEST(DenseAttention, WrongTokenCountIsAnError) {
  Layer layer(false);
  layer.x = layer.x.narrow(1, 0, 11);
  EXPECT_THROW(layer.forward(nullptr), Error);
  EXPECT_THROW(DenseAttention(10, 3, false), Error);
}

/// Central differences of sum(g * f(x)) in random directions against autograd.
template <typename F>
void expect_gradient(Tensor x, F f) {
  x = x.detach().clone().requires_grad_();
  const Tensor y = f(x);
  const Tensor g = normal(y.sizes(), 70);
  (y * g).sum().backward();
  constexpr double kStep = 1e-5;
  for (uint32_t i = 0; i < 4; ++i) {
    const Tensor d = normal(x.sizes(), 80 + i);
    const torch::NoGradGuard no_grad;
    const double numeric =
        ((f(x + kStep * d) - f(x - kStep * d)) * g).sum().template item<double>() / (2 * kStep);
    const double exact = (x.grad() * d).sum().template item<double>();
    // Truncation is of order step^2 = 1e-10, rounding of order 1e-16 |y| / step.
    EXPECT_NEAR(numeric, exact, 1e-8 * (1 + std::abs(exact)));
  }
}

TEST(DenseAttention, GradientsMatchFiniteDifferences) {
  for (const auto pattern : {Pattern::kFull, Pattern::kCausal, Pattern::kCausalAfter}) {
    Layer layer(true, pattern);
    const Rope rope({}, 8, layer.layout, torch::kDouble, torch::kCPU);
    expect_gradient(layer.x, [&](const Tensor& x) {
      return layer.attention->forward(x, layer.layout, &rope, {});
    });
  }
  const Tensor q = normal({1, 2, 80, 4}, 3);  // the long path
  expect_gradient(q, [](const Tensor& x) { return dense_attention(x, x * 0.5, x.square(), true); });
}

TEST(DenseAttention, ParametersGetGradients) {
  Layer layer(true, Pattern::kCausalAfter);
  layer.forward(nullptr).square().sum().backward();
  for (const auto& item : layer.attention->named_parameters()) {
    ASSERT_TRUE(item.value().grad().defined()) << item.key();
    EXPECT_GT(item.value().grad().abs().max().item<double>(), 0) << item.key();
  }
}

TEST(MakeAttention, DenseByName) {
  AttentionConfig config;
  config.qk_norm = true;
  auto attention = make_attention(config, 16, 4, {1, 1, 8}, 0);
  EXPECT_EQ(attention->named_parameters()["q_norm.weight"].numel(), 4);
}

TEST(DenseAttention, Flops) {
  TokenLayout layout;
  layout.grid = {1, 1, 10};
  EXPECT_EQ(DenseAttention(8, 2, false).flops(layout), 2.0 * 10 * 8 * 32 + 4.0 * 100 * 8);
}

}  // namespace
}  // namespace sigma
