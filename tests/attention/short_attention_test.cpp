// Attention of short rows against the definition in float64: values and gradient, odd sizes.
#include "sigma/attention/short_attention.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include <limits>

#include "sigma/attention/dense.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

Tensor numbers(torch::IntArrayRef shape, uint32_t site) {
  return normal(shape, site, torch::kFloat);
}

void compare(int64_t B, int64_t N, int64_t H, int64_t D) {
  const Tensor input = numbers({B, N, 3 * H * D}, 1);
  const Tensor weight = numbers({B, N, H * D}, 2);
  const Tensor exact = input.to(torch::kDouble).requires_grad_();
  const auto parts = exact.view({B, N, 3, H, D}).permute({2, 0, 3, 1, 4}).unbind(0);
  const Tensor expected = attention_reference(parts[0], parts[1], parts[2], false)
                              .transpose(1, 2)
                              .reshape({B, N, H * D});
  (expected * weight).sum().backward();
  const Tensor fast = input.clone().requires_grad_();
  ASSERT_TRUE(takes_short_attention(fast));
  const Tensor actual = short_attention(fast, H);
  (actual * weight).sum().backward();
  // Scores are sums of D products of unit size, outputs of N: their roundings add up as roots.
  const double bound =
      16 * std::sqrt(static_cast<double>(std::max(N, D))) * std::numeric_limits<float>::epsilon();
  const auto check = [&](const Tensor& a, const Tensor& b, const char* what) {
    if (b.numel() == 0) return;
    EXPECT_LE((a.to(torch::kDouble) - b).abs().max().item<double>(),
              bound * std::max(1.0, b.abs().max().item<double>()))
        << what << " at B " << B << " N " << N << " H " << H << " D " << D;
  };
  check(actual.detach(), expected.detach(), "output");
  check(fast.grad(), exact.grad(), "gradient");
}

TEST(ShortAttention, EqualsTheDefinition) {
  compare(3, 16, 4, 32);
  compare(2, 1, 2, 8);
  compare(2, 33, 3, 20);
  compare(1, 128, 1, 64);
  compare(0, 4, 2, 8);
}

TEST(ShortAttention, LargeScoresStayFinite) {
  const Tensor qkv = numbers({1, 5, 3 * 16}, 3) * 1e4;
  EXPECT_TRUE(torch::isfinite(short_attention(qkv, 2)).all().item<bool>());
}

}  // namespace
}  // namespace sigma
