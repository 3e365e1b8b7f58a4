// Linear, norms, the dense mlp and the dtype helpers against their formulas.
#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>
#include <limits>

#include "sigma/base/error.h"
#include "sigma/nn/linear.h"
#include "sigma/nn/mlp.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr double kEps32 = std::numeric_limits<float>::epsilon();
constexpr double kEps64 = std::numeric_limits<double>::epsilon();

/// The largest sum of absolute products of x W^T: what rounding errors of a dot are proportional
/// to.
double dot_scale(const Tensor& x, const Tensor& w) {
  return x.abs().matmul(w.abs().t()).max().item<double>();
}

TEST(Linear, MatchesTheFormulaInEveryDtype) {
  torch::NoGradGuard no_grad;
  Linear linear(24, 5);
  initialize(linear, 2);
  auto named = linear.named_parameters();
  named["bias"].copy_(normal({5}, 9));
  const Tensor x = normal({3, 7, 24}, 0);
  const Tensor w = named["weight"].to(torch::kDouble);
  const Tensor expected = x.matmul(w.t()) + named["bias"].to(torch::kDouble);
  const double scale = dot_scale(x, w) + 3;

  const Tensor f32 = linear.forward(x.to(torch::kFloat));
  EXPECT_EQ(f32.scalar_type(), torch::kFloat);
  EXPECT_LE(error(f32, expected), 26 * kEps32 * scale);
  const Tensor bf16 = linear.forward(x.to(torch::kBFloat16));
  EXPECT_EQ(bf16.scalar_type(), torch::kBFloat16);
  EXPECT_LE(error(bf16, expected), 4 * 0x1p-8 * scale);
  const Tensor f64 = linear.forward(x);  // float32 weights, cast to the input's dtype
  EXPECT_EQ(f64.scalar_type(), torch::kDouble);
  EXPECT_LE(error(f64, expected), 26 * kEps64 * scale);
  EXPECT_EQ(linear.in_features(), 24);
  EXPECT_EQ(linear.out_features(), 5);
  EXPECT_EQ(linear.flops(21), 2.0 * 21 * 24 * 5);
}

TEST(Linear, GradientsReachFloat32WeightsThroughACast) {
  Linear linear(4, 3);
  initialize(linear, 2);
  linear.forward(normal({2, 4}, 0, torch::kFloat).to(torch::kBFloat16)).sum().backward();
  for (const auto& p : linear.parameters()) {
    ASSERT_TRUE(p.grad().defined());
    EXPECT_EQ(p.grad().scalar_type(), torch::kFloat);
  }
}

TEST(Linear, StartsXavierWithZeroBias) {
  Linear linear(24, 5);
  initialize(linear, 2);
  EXPECT_LE(linear.named_parameters()["weight"].abs().max().item<double>(), std::sqrt(6.0 / 29));
  EXPECT_EQ(linear.named_parameters()["bias"].abs().max().item<double>(), 0);
  EXPECT_EQ(Linear(3, 2, false).parameters().size(), 1u);
}

TEST(LayerNorm, FormulaAndDtypes) {
  torch::NoGradGuard no_grad;
  const Tensor x = normal({4, 10}, 1) * 3 + 2;
  const Tensor mean = x.mean(-1, true);
  const Tensor plain = (x - mean) / ((x - mean).square().mean(-1, true) + 1e-6).sqrt();
  LayerNorm norm(10);
  initialize(norm, 0);  // weight 1, bias 0
  EXPECT_LE(error(norm.forward(x.to(torch::kFloat)), plain), 16 * kEps32);
  const Tensor from_bf16 = norm.forward(x.to(torch::kBFloat16));  // computed, returned in float32
  EXPECT_EQ(from_bf16.scalar_type(), torch::kFloat);
  auto named = norm.named_parameters();
  named["weight"].copy_(normal({10}, 2));
  named["bias"].copy_(normal({10}, 3));
  norm.to(torch::kDouble);
  EXPECT_EQ(norm.forward(x).scalar_type(), torch::kDouble);
  EXPECT_LE(error(norm.forward(x),
                  plain * norm.named_parameters()["weight"] + norm.named_parameters()["bias"]),
            1e-14 * 10);
}

TEST(LayerNorm, EpsMatters) {
  const Tensor x = torch::tensor({{1e-3, -1e-3}}, torch::kDouble);
  for (const double eps : {1e-6, 1e-5}) {
    LayerNorm norm(2, eps);
    initialize(norm, 0);
    norm.to(torch::kDouble);
    EXPECT_NEAR(norm.forward(x)[0][0].item<double>(), 1e-3 / std::sqrt(1e-6 + eps), 1e-12);
  }
}

TEST(RmsNorm, FormulaAndDtypes) {
  torch::NoGradGuard no_grad;
  const Tensor x = normal({4, 10}, 1) * 3 + 2;
  const Tensor expected = x / (x.square().mean(-1, true) + 1e-6).sqrt();
  RmsNorm norm(10);
  initialize(norm, 0);
  EXPECT_EQ(norm.forward(x.to(torch::kBFloat16)).scalar_type(), torch::kBFloat16);
  EXPECT_LE(error(norm.forward(x.to(torch::kBFloat16)), expected), 4 * 0x1p-8 * 3);
  norm.named_parameters()["weight"].copy_(normal({10}, 2));
  norm.to(torch::kDouble);
  EXPECT_LE(error(norm.forward(x), expected * norm.named_parameters()["weight"]), 1e-14);
}

TEST(Dtype, ComputeAndAtLeastFloat) {
  Context context;
  context.dtype = torch::kBFloat16;
  EXPECT_EQ(to_compute(torch::zeros({1}), context).scalar_type(), torch::kBFloat16);
  EXPECT_EQ(to_compute(torch::zeros({1}, torch::kDouble), context).scalar_type(), torch::kDouble);
  context.dtype = torch::kFloat;
  EXPECT_EQ(to_compute(torch::zeros({1}, torch::kDouble), context).scalar_type(), torch::kDouble);
  EXPECT_EQ(to_compute(torch::zeros({1}, torch::kBFloat16), context).scalar_type(), torch::kFloat);
  EXPECT_EQ(at_least_float(torch::zeros({1}, torch::kBFloat16)).scalar_type(), torch::kFloat);
  EXPECT_EQ(at_least_float(torch::zeros({1}, torch::kDouble)).scalar_type(), torch::kDouble);
}

TEST(Activate, Formulas) {
  const Tensor x = torch::linspace(-6, 6, 201, torch::kDouble);
  EXPECT_LE(error(activate(x, "silu"), x / (1 + (-x).exp())), 1e-14);
  EXPECT_LE(error(activate(x, "gelu"), x * 0.5 * (1 + (x / std::sqrt(2)).erf())), 1e-14);
  const Tensor inner = std::sqrt(2 / M_PI) * (x + 0.044715 * x.pow(3));
  EXPECT_LE(error(activate(x, "gelu_tanh"), 0.5 * x * (1 + inner.tanh())), 1e-14);
  EXPECT_THROW(activate(x, "relu"), Error);
}

TEST(DenseMlp, TwoLinears) {
  torch::NoGradGuard no_grad;
  DenseMlp mlp(6, 10, "silu");
  initialize(mlp, 4);
  mlp.to(torch::kDouble);
  auto p = mlp.named_parameters();
  const Tensor x = normal({2, 3, 6}, 0);
  const Tensor hidden = torch::silu(x.matmul(p["fc1.weight"].t()) + p["fc1.bias"]);
  const Output out = mlp.forward(x, Context{});
  EXPECT_LE(error(out.value, hidden.matmul(p["fc2.weight"].t()) + p["fc2.bias"]), 1e-14);
  EXPECT_TRUE(out.losses.empty() && out.statistics.empty());
  EXPECT_EQ(mlp.flops(3), 2.0 * 3 * (6 * 10 + 10 * 6));
}

TEST(Output, AbsorbSumsEqualNames) {
  Output a;
  a.losses["x"] = torch::tensor(1.0);
  Output b;
  b.losses["x"] = torch::tensor(2.0);
  b.losses["y"] = torch::tensor(5.0);
  b.statistics["n"] = torch::tensor(3.0);
  a.absorb(b);
  a.absorb(b);
  EXPECT_EQ(a.losses["x"].item<double>(), 5);
  EXPECT_EQ(a.losses["y"].item<double>(), 10);
  EXPECT_EQ(a.statistics["n"].item<double>(), 6);
}

}  // namespace
}  // namespace sigma
