#include "sigma/metrics/frechet.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>

#include "sigma/base/error.h"

namespace sigma {
namespace {

using torch::Tensor;

// a[i,d] = cos(.7 i (d+1) + 1.3 d), b = 1.1 cos(the same + .4) + .1; with `rank2` the factor d+1 is
// left out.
std::pair<Tensor, Tensor> golden_sets(bool rank2) {
  const Tensor i = torch::arange(64, torch::kDouble).unsqueeze(1);
  const Tensor d = torch::arange(4, torch::kDouble).unsqueeze(0);
  const Tensor angle = 0.7 * i * (rank2 ? torch::ones_like(d) : d + 1) + 1.3 * d;
  return {torch::cos(angle), 1.1 * torch::cos(angle + 0.4) + 0.1};
}

double frechet(const Tensor& a, const Tensor& b) {
  return frechet_distance(feature_statistics(a), feature_statistics(b));
}

TEST(Frechet, Golden) {
  const auto [a, b] = golden_sets(false);
  EXPECT_NEAR(frechet(a, b), 0.0596471764, 5e-11);  // half a unit of the last given digit
  EXPECT_NEAR(frechet(b, a), 0.0596471764, 5e-11);
}

TEST(Frechet, GoldenOfRankTwo) {
  // Square roots of eigenvalues that are zero up to rounding: the distance is known to 1e-7 only.
  const auto [a, b] = golden_sets(true);
  EXPECT_NEAR(frechet(a, b), 0.0586884, 1e-7);
}

TEST(Frechet, Gaussians) {
  const auto options = torch::TensorOptions().dtype(torch::kDouble);
  const FeatureStatistics a{torch::zeros({2}, options),
                            torch::tensor({2.0, 0.5, 0.5, 1.0}, options).view({2, 2}), 100};
  const FeatureStatistics b{torch::tensor({1.0, -1.0}, options),
                            torch::tensor({1.0, 0.0, 0.0, 3.0}, options).view({2, 2}), 100};
  EXPECT_NEAR(frechet_distance(a, b), 2.80885287, 5e-9);
  EXPECT_NEAR(frechet_distance(a, a), 0, 1e-14);
}

TEST(Frechet, StatisticsAreOfFloat64AndOverNMinusOne) {
  const Tensor x = torch::tensor({1.0f, 2.0f, 3.0f, 6.0f}).view({2, 2});
  const FeatureStatistics s = feature_statistics(x);
  EXPECT_EQ(s.count, 2);
  EXPECT_EQ(s.mean.scalar_type(), torch::kDouble);
  EXPECT_TRUE(s.mean.equal(torch::tensor({2.0, 4.0}, torch::kDouble)));
  EXPECT_TRUE(s.covariance.equal(torch::tensor({2.0, 4.0, 4.0, 8.0}, torch::kDouble).view({2, 2})));
}

TEST(Frechet, RefusesWhatHasNoAnswer) {
  EXPECT_THROW(feature_statistics(torch::zeros({1, 3})), Error);
  EXPECT_THROW(feature_statistics(torch::zeros({3})), Error);
  try {
    feature_statistics(torch::full({3, 2}, NAN));
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kNonFinite);
  }
  EXPECT_THROW(frechet(torch::eye(3), torch::eye(4)), Error);
}

TEST(Energy, Golden) {
  const auto [a, b] = golden_sets(false);
  EXPECT_NEAR(energy_distance(a, b), 0.0309666488, 5e-11);
  EXPECT_NEAR(energy_distance(b, a), 0.0309666488, 5e-11);
}

TEST(Energy, ByHand) {
  // x = {0, 2}, y = {1, 4, 4}: 2 * 14/6 - 2 - 2 with |x-y| = 1 4 4 1 2 2, |x-x'| = 2, |y-y'| = 3 3
  // 0.
  const Tensor x = torch::tensor({0.0, 2.0}).view({2, 1});
  const Tensor y = torch::tensor({1.0, 4.0, 4.0}).view({3, 1});
  EXPECT_NEAR(energy_distance(x, y), 2 * 14.0 / 6 - 2 - 2, 1e-14);
  // Equal sets: the U-statistic is negative.
  EXPECT_NEAR(energy_distance(x, x), 2 * 1.0 - 2 - 2, 1e-14);
  EXPECT_THROW(energy_distance(x, x.slice(0, 0, 1)), Error);
  EXPECT_THROW(energy_distance(x, torch::zeros({2, 2})), Error);
}

TEST(Energy, TilesJoin) {
  // More rows than a tile: a regular grid, whose mean distances have closed forms.
  const int64_t n = 1500;
  const Tensor x = torch::arange(n, torch::kDouble).unsqueeze(1);
  const double within = (n + 1) / 3.0;         // over pairs of different rows
  const double across = within * (n - 1) / n;  // over all pairs
  const double scale = n * std::numeric_limits<double>::epsilon();
  EXPECT_NEAR(energy_distance(x, x), 2 * across - 2 * within, n * scale);
}

}  // namespace
}  // namespace sigma
