// The fused CPU path of gated_norm against its definition: values and all gradients, odd sizes,
// views.
#include "sigma/nn/gated_norm.h"

#include <gtest/gtest.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <limits>

#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

Tensor numbers(torch::IntArrayRef shape, uint32_t site) {
  return normal(shape, site, torch::kFloat);
}

void compare(int64_t B, int64_t N, int64_t C, bool gated, bool strided) {
  std::vector<Tensor> leaves = {numbers({B, N, C}, 1), numbers({B, N, C}, 2),
                                numbers({B, 3 * C}, 3)};
  if (strided) leaves[0] = numbers({N, B, C}, 1).transpose(0, 1);
  const Tensor weight_y = numbers({B, N, C}, 4);
  const Tensor weight_h = numbers({B, N, C}, 5);
  const auto run = [&](bool fused) {
    std::vector<Tensor> inputs;
    for (const Tensor& leaf : leaves) {
      // float64 for the definition, so that only the fused path's rounding is measured
      inputs.push_back((fused ? leaf : leaf.to(torch::kDouble)).detach().requires_grad_());
    }
    const auto m = inputs[2].chunk(3, 1);
    const Tensor a = gated ? inputs[1] : Tensor();
    const Tensor gate = gated ? m[0] : Tensor();
    const GatedNorm out =
        (fused ? gated_norm : gated_norm_reference)(inputs[0], a, gate, m[1], m[2], 1e-6);
    ((out.y * weight_y).sum() + (out.h * weight_h).sum()).backward();
    std::vector<Tensor> all = {out.y.detach(), out.h.detach()};
    for (const Tensor& input : inputs) {
      if (input.grad().defined()) all.push_back(input.grad());
    }
    return all;
  };
  const auto expected = run(false);
  const auto actual = run(true);
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    if (expected[i].numel() == 0) continue;
    // A few roundings of sums over C or N numbers of unit size; pairwise lanes keep the growth at
    // its root.
    const double terms = static_cast<double>(std::max(C, N));
    const double bound = 8 * std::sqrt(terms) * std::numeric_limits<float>::epsilon() *
                         std::max(1.0, expected[i].abs().max().item<double>());
    EXPECT_LE((actual[i].to(torch::kDouble) - expected[i]).abs().max().item<double>(), bound)
        << "output " << i << " of " << B << "x" << N << "x" << C;
  }
}

TEST(GatedNorm, FusedPathEqualsTheDefinition) {
  for (const bool gated : {false, true}) {
    compare(3, 5, 32, gated, false);
    compare(2, 1, 7, gated, false);
    compare(4, 16, 129, gated, false);
    compare(3, 4, 48, gated, true);
    compare(0, 4, 16, gated, false);
  }
}

TEST(GatedNorm, IsTheSameAtAnyNumberOfThreads) {
  const Tensor x = numbers({7, 9, 40}, 1);
  const Tensor m = numbers({7, 80}, 2);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const Tensor one = gated_norm(x, {}, {}, m.narrow(1, 0, 40), m.narrow(1, 40, 40), 1e-6).y;
  at::set_num_threads(2);
  const Tensor two = gated_norm(x, {}, {}, m.narrow(1, 0, 40), m.narrow(1, 40, 40), 1e-6).y;
  at::set_num_threads(threads);
  EXPECT_TRUE(torch::equal(one, two));
}

}  // namespace
}  // namespace sigma
