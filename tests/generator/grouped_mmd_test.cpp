// The grouped maximum mean discrepancy: golden numbers, the closed gradient, precision.
#include "sigma/generator/grouped_mmd.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>
#include <limits>

#include "sigma/base/error.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr double kFloor = 1e-4;

struct Case {
  Tensor y, z, kappa;
};

Case golden() {
  const Tensor g = torch::arange(2, torch::kDouble).view({2, 1, 1});
  const Tensor j = torch::arange(4, torch::kDouble).view({1, 4, 1});
  const Tensor d = torch::arange(8, torch::kDouble).view({1, 1, 8});
  const Tensor angle = .7 * g + 1.3 * j + .37 * d;
  return {.5 * torch::cos(angle), .5 * torch::cos(angle + .2),
          torch::tensor({5., .5}, torch::kDouble) / 8};
}

Tensor gradient(const Case& c, const std::string& kernel = "laplace", const Tensor& upstream = {}) {
  const Tensor y = c.y.detach().clone().requires_grad_();
  const Tensor m = grouped_mmd(y, c.z, c.kappa, kernel, kFloor).mmd;
  (upstream.defined() ? (m * upstream).sum() : m.sum()).backward();
  return y.grad();
}

/// Section 6: grad y_j = 2 kappa [sum_k Pyz_jk (y_j - z_k) - sum_{k != j} Pyy_jk (y_j - y_k)] /
/// M^2.
Tensor closed_gradient(const Case& c, bool rbf) {
  const auto M = static_cast<double>(c.y.size(1));
  const Tensor kappa = c.kappa.view({-1, 1, 1, 1});
  const auto pull = [&](const Tensor& a, const Tensor& b) {
    const Tensor difference = a.unsqueeze(2) - b.unsqueeze(1);
    const Tensor d = difference.norm(2, -1, true);
    const Tensor p = rbf ? 2 * torch::exp(-kappa * d.square()) : torch::exp(-kappa * d) / d;
    return (torch::where(d > kFloor, p, torch::zeros_like(p)).nan_to_num(0) * difference).sum(2);
  };
  return 2 * c.kappa.view({-1, 1, 1}) / (M * M) * (pull(c.y, c.z) - pull(c.y, c.y));
}

TEST(GroupedMmd, Golden) {
  const Case c = golden();
  const Tensor m = grouped_mmd(c.y, c.z, c.kappa, "laplace", kFloor).mmd;
  ASSERT_EQ(m.scalar_type(), torch::kDouble);
  EXPECT_NEAR(m[0].item<double>(), .0543118492698, 5e-14);
  EXPECT_NEAR(m[1].item<double>(), .0054909504770, 5e-14);
  const Tensor grad = gradient(c);
  EXPECT_NEAR(grad[0].norm().item<double>(), .114629131049, 5e-13);
  EXPECT_NEAR(grad[1].norm().item<double>(), .011970923321, 5e-13);
  EXPECT_NEAR(grad[0][0][0].item<double>(), .00374646345149, 5e-15);
  EXPECT_NEAR(grad[1][3][7].item<double>(), .00245768439485, 5e-15);
}

TEST(GroupedMmd, GradientIsTheClosedForm) {
  for (const bool rbf : {false, true}) {
    for (const int64_t M : {1, 2, 4, 9}) {
      const Case c{normal({3, M, 5}, 0), normal({3, M, 5}, 1),
                   torch::tensor({.1, 1., 4.}, torch::kDouble)};
      EXPECT_LE(error(gradient(c, rbf ? "rbf" : "laplace"), closed_gradient(c, rbf)), 1e-14) << M;
    }
  }
}

TEST(GroupedMmd, GradientScalesWithTheUpstreamGradientOfItsGroup) {
  const Case c = golden();
  const Tensor w = torch::tensor({3., -2.}, torch::kDouble);
  EXPECT_LE(error(gradient(c, "laplace", w), gradient(c) * w.view({2, 1, 1})), 1e-16);
}

TEST(GroupedMmd, FiniteDifferences) {
  const Case c = golden();
  for (const char* kernel : {"laplace", "rbf"}) {
    const Tensor grad = gradient(c, kernel);
    const Tensor direction = normal(c.y.sizes(), 5);
    constexpr double kStep = 1e-5;
    const auto value = [&](double h) {
      return grouped_mmd(c.y + h * direction, c.z, c.kappa, kernel, kFloor)
          .mmd.sum()
          .item<double>();
    };
    EXPECT_NEAR((value(kStep) - value(-kStep)) / (2 * kStep),
                (grad * direction).sum().item<double>(), 1e-8);
  }
}

TEST(GroupedMmd, EqualSamplesGiveExactlyZero) {
  const Tensor y = normal({3, 4, 6}, 0);
  const Tensor kappa = torch::tensor({.1, 1., 100.}, torch::kDouble);
  for (const char* kernel : {"laplace", "rbf"}) {
    EXPECT_EQ(grouped_mmd(y, y, kappa, kernel, kFloor).mmd.abs().max().item<double>(), 0);
    EXPECT_EQ(grouped_mmd(y.to(torch::kFloat), y.to(torch::kFloat), kappa, kernel, kFloor)
                  .mmd.abs()
                  .max()
                  .item<double>(),
              0);
    EXPECT_TRUE(gradient({y, y, kappa}, kernel).isfinite().all().item<bool>());
  }
}

TEST(GroupedMmd, OneSampleIsAConsistencyLoss) {
  const Tensor y = normal({5, 1, 7}, 0);
  const Tensor z = normal({5, 1, 7}, 1);
  const Tensor kappa = torch::linspace(.1, 3, 5, torch::kDouble);
  const Tensor d = (y - z).norm(2, -1).squeeze(1);
  const Tensor expected = 2 * (torch::exp(-kappa * kFloor) - torch::exp(-kappa * d));
  EXPECT_LE(error(grouped_mmd(y, z, kappa, "laplace", kFloor).mmd, expected), 1e-15);
}

TEST(GroupedMmd, PermutingAGroupKeepsItsValue) {
  const Tensor y = normal({2, 5, 6}, 0);
  const Tensor z = normal({2, 5, 6}, 1);
  const Tensor kappa = torch::tensor({.3, 1.}, torch::kDouble);
  const Tensor order = torch::tensor({3, 0, 4, 1, 2}, torch::kInt64);
  const Tensor m = grouped_mmd(y, z, kappa, "laplace", kFloor).mmd;
  EXPECT_LE(error(grouped_mmd(y.index_select(1, order), z, kappa, "laplace", kFloor).mmd, m),
            1e-15);
  EXPECT_LE(error(grouped_mmd(y, z.index_select(1, order), kappa, "laplace", kFloor).mmd, m),
            1e-15);
}

TEST(GroupedMmd, IsNonNegativeAndSymmetric) {
  for (uint32_t i = 0; i < 5; ++i) {
    const Tensor y = normal({8, 4, 3}, 10 + i);
    const Tensor z = normal({8, 4, 3}, 20 + i);
    const Tensor kappa = torch::full({8}, 0.5, torch::kDouble);
    const Tensor m = grouped_mmd(y, z, kappa, "laplace", kFloor).mmd;
    EXPECT_GE(m.min().item<double>(), 0);
    EXPECT_LE(error(grouped_mmd(z, y, kappa, "laplace", kFloor).mmd, m), 1e-15);
  }
}

TEST(GroupedMmd, BelowTheFloorTheGradientIsZero) {
  const Tensor z = torch::zeros({1, 1, 3}, torch::kDouble);
  const Tensor kappa = torch::ones({1}, torch::kDouble);
  const Tensor near = torch::full({1, 1, 3}, 1e-5, torch::kDouble);
  EXPECT_EQ(gradient({near, z, kappa}).abs().max().item<double>(), 0);
  EXPECT_EQ(gradient({z, z, kappa}).abs().max().item<double>(), 0);
  EXPECT_GT(gradient({near * 100, z, kappa}).abs().min().item<double>(), 0.1);
}

TEST(GroupedMmd, Float32InputsStayWithinTheBounds) {
  constexpr double kEps = std::numeric_limits<float>::epsilon();
  // D = 3072, z = y + 1 % noise: a Gram matrix would lose 1e-2 of the loss here, exp instead of
  // expm1 7e-5.
  const int64_t M = 4;
  const Tensor y = (normal({3, M, 3072}, 0) * 0.5).to(torch::kFloat);
  const Tensor z = (y.to(torch::kDouble) + normal({3, M, 3072}, 1) * 0.005).to(torch::kFloat);
  const Tensor kappa = torch::tensor({4., 2., 1.}, torch::kDouble) / 3072;
  const Case exact{y.to(torch::kDouble), z.to(torch::kDouble), kappa};
  const Tensor m = grouped_mmd(exact.y, exact.z, kappa, "laplace", kFloor).mmd;
  const double largest =
      (kappa.view({3, 1, 1}) * torch::cdist(exact.y, exact.z)).max().item<double>();
  EXPECT_LE(error(grouped_mmd(y, z, kappa, "laplace", kFloor).mmd, m), 4 * kEps * largest);
  EXPECT_LE(((grouped_mmd(y, z, kappa, "laplace", kFloor).mmd - m) / m).abs().max().item<double>(),
            3e-5);
  const Tensor rows = (gradient({y, z, kappa}).to(torch::kDouble) - gradient(exact)).norm(2, -1);
  const Tensor bound = 4 * kEps * (2 * kappa / (M * M)) * (2 * M - 1);
  EXPECT_TRUE((rows <= bound.view({3, 1})).all().item<bool>()) << rows / bound.view({3, 1});
}

TEST(GroupedMmd, SimilaritiesAreBlockMeansOfTheKernel) {
  const Case c = golden();
  const auto out = grouped_mmd(c.y.clone().requires_grad_(), c.z, c.kappa, "laplace", kFloor);
  const auto mean = [&](const Tensor& a, const Tensor& b) {
    const Tensor d = (a.unsqueeze(2) - b.unsqueeze(1)).norm(2, -1).clamp_min(kFloor);
    return torch::exp(-c.kappa.view({2, 1, 1}) * d).mean({1, 2});
  };
  EXPECT_LE(error(out.yy_sim, mean(c.y, c.y)), 1e-15);
  EXPECT_LE(error(out.zz_sim, mean(c.z, c.z)), 1e-15);
  EXPECT_LE(error(out.yz_sim, mean(c.y, c.z)), 1e-15);
  EXPECT_LE(error(out.mmd.detach(), out.yy_sim + out.zz_sim - 2 * out.yz_sim), 4e-16 * 4);
  EXPECT_FALSE(out.yy_sim.requires_grad());
}

TEST(GroupedMmd, NonContiguousInputs) {
  const Case c = golden();
  const Tensor y = c.y.transpose(1, 2).contiguous().transpose(1, 2);
  EXPECT_LE(error(grouped_mmd(y, c.z, c.kappa, "laplace", kFloor).mmd,
                  grouped_mmd(c.y, c.z, c.kappa, "laplace", kFloor).mmd),
            1e-16);
}

TEST(GroupedMmd, Errors) {
  const Case c = golden();
  EXPECT_THROW(grouped_mmd(c.y, c.z.slice(1, 0, 3), c.kappa, "laplace", kFloor), Error);
  EXPECT_THROW(grouped_mmd(c.y, c.z, c.kappa.slice(0, 0, 1), "laplace", kFloor), Error);
  EXPECT_THROW(grouped_mmd(c.y, c.z, c.kappa, "energy", kFloor), Error);
  EXPECT_THROW(grouped_mmd(torch::zeros({1, 65, 2}), torch::zeros({1, 65, 2}),
                           c.kappa.slice(0, 0, 1), "laplace", kFloor),
               Error);
  EXPECT_THROW(grouped_mmd(c.y.flatten(1), c.z.flatten(1), c.kappa, "laplace", kFloor), Error);
}

}  // namespace
}  // namespace sigma
