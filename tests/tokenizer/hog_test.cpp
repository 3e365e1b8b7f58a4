// Gradient histograms: what golden files do not show. Any P, sides and channels; errors.
#include "sigma/tokenizer/hog.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "tests/testing/errors.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

// The definition, pixel by pixel.
Tensor by_definition(const Tensor& images, int64_t P, int64_t bins, int64_t cells) {
  const int64_t B = images.size(0), I = images.size(1), H = images.size(2), W = images.size(3);
  const int64_t n = std::min(cells, P);
  Tensor out = torch::zeros({B, H / P * (W / P), I, bins, n, n}, torch::kDouble);
  auto h = out.accessor<double, 6>();
  const auto x = images.accessor<double, 4>();
  const auto inside = [](int64_t i, int64_t side) {
    return i < 0 ? -i : i >= side ? 2 * side - 2 - i : i;
  };
  double total = 0;
  const auto bell = [&](int64_t y, int64_t z) {
    const double centre = static_cast<double>(P - 1) / 2;
    const double dy = static_cast<double>(y) - centre, dz = static_cast<double>(z) - centre;
    return std::exp(-(dy * dy + dz * dz) / (2 * static_cast<double>(P * P) / 4));
  };
  for (int64_t y = 0; y < P; ++y)
    for (int64_t z = 0; z < P; ++z) total += bell(y, z);
  constexpr int64_t kSmooth[3] = {1, 2, 1};
  for (int64_t b = 0; b < B; ++b)
    for (int64_t i = 0; i < I; ++i)
      for (int64_t y = 0; y < H; ++y)
        for (int64_t z = 0; z < W; ++z) {
          double gx = 0, gy = 0;
          for (int64_t k = -1; k <= 1; ++k)
            for (int64_t sign : {-1, 1}) {
              const auto weight = static_cast<double>(-sign * kSmooth[k + 1]);
              gx += weight * x[b][i][inside(y + k, H)][inside(z + sign, W)];
              gy += weight * x[b][i][inside(y + sign, H)][inside(z + k, W)];
            }
          const double turn = std::atan2(gx, gy) / std::numbers::pi * static_cast<double>(bins);
          const int64_t bin = (static_cast<int64_t>(std::floor(turn)) + bins) % bins;
          h[b][y / P * (W / P) + z / P][i][bin][y % P * n / P][z % P * n / P] +=
              std::hypot(gx, gy) * bell(y % P, z % P) / total;
        }
  return (out / out.norm(2, {3}, true).clamp_min(1e-12)).flatten(2);
}

TEST(Hog, IsItsDefinition) {
  struct Case {
    std::vector<int64_t> shape;
    int64_t patch, bins, cells;
  };
  for (const Case& c :
       {Case{{2, 1, 28, 28}, 7, 9, 2}, Case{{1, 4, 15, 10}, 5, 8, 3}, Case{{2, 2, 6, 4}, 1, 9, 2},
        Case{{1, 3, 2, 2}, 2, 2, 8}, Case{{1, 1, 3, 9}, 3, 36, 1}}) {
    const Tensor images = normal(c.shape, 1);
    const Tensor expected = by_definition(images, c.patch, c.bins, c.cells);
    const Tensor target = hog_targets(images, c.patch, c.bins, c.cells);
    ASSERT_EQ(target.sizes(), expected.sizes());
    EXPECT_LE(error(target, expected), 1e-13) << torch::IntArrayRef(c.shape);
  }
}

TEST(Hog, ARampHasOneDirectionAndAConstantNone) {
  const Tensor ramp = torch::arange(16, torch::kFloat).expand({1, 1, 16, 16}) / 8 - 1;
  // Columns 4..11: at the border the reflection has no slope.
  const Tensor target = hog_targets(ramp, 4).view({4, 4, 9, 4}).slice(1, 1, 3);
  EXPECT_TRUE(torch::equal(target.select(2, 4), torch::ones({4, 2, 4})));
  EXPECT_EQ(target.sum().item<double>(), 4 * 2 * 4);
  // The other way is the same bin; down and up are bin 0.
  EXPECT_TRUE(torch::equal(hog_targets(-ramp, 4), hog_targets(ramp, 4)));
  for (const double sign : {-1., 1.}) {
    const Tensor down = hog_targets(sign * ramp.transpose(2, 3), 4).view({4, 4, 9, 4});
    EXPECT_TRUE(torch::equal(down.slice(0, 1, 3).select(2, 0), torch::ones({2, 4, 4})));
  }
  EXPECT_EQ(hog_targets(torch::full({2, 3, 8, 8}, 0.3), 4).abs().max().item<double>(), 0);
}

TEST(Hog, AnImagesTargetIsItsOwnAndHasNoGradient) {
  const Tensor images = normal({5, 3, 16, 24}, 2, torch::kFloat).requires_grad_();
  const Tensor all = hog_targets(images, 8);
  EXPECT_FALSE(all.requires_grad());
  EXPECT_EQ(all.scalar_type(), torch::kFloat);
  EXPECT_TRUE(torch::equal(hog_targets(images.slice(0, 3, 4), 8), all.slice(0, 3, 4)));
  const Tensor strided = images.detach().contiguous(torch::MemoryFormat::ChannelsLast);
  EXPECT_TRUE(torch::equal(hog_targets(strided, 8), all));
  const Tensor rounded = images.detach().to(torch::kBFloat16);
  EXPECT_TRUE(torch::equal(hog_targets(rounded, 8), hog_targets(rounded.to(torch::kFloat), 8)));
}

TEST(Hog, SidesThatDoNotFitAreNamed) {
  const auto refused = [](torch::IntArrayRef shape, int64_t patch, const std::string& part) {
    testing::expect_contains(
        testing::error_of(ErrorKind::kUsage, [&] { hog_targets(torch::zeros(shape), patch); }),
        part);
  };
  refused({1, 1, 1, 8}, 1, "at least 2 x 2, got 1 x 8");
  refused({1, 1, 12, 8}, 8, "a divisor of 12 x 8, got 8");
}

}  // namespace
}  // namespace sigma
