// The order of patches and of channels within a row; fixed positions.
#include "sigma/trunk/patches.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>

#include "sigma/base/error.h"
#include "sigma/trunk/positions.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

TEST(Patchify, IsAStridedConvolution) {
  const Tensor images = normal({2, 3, 6, 4}, 0);
  const Tensor kernel = normal({5, 3, 2, 2}, 1);
  const Tensor expected = torch::conv2d(images, kernel, {}, 2).flatten(2).transpose(1, 2);
  const Tensor rows = patchify(images, 2);
  EXPECT_EQ(rows.sizes(), (std::vector<int64_t>{2, 6, 12}));
  EXPECT_LE((rows.matmul(kernel.flatten(1).t()) - expected).abs().max().item<double>(), 1e-14);
}

TEST(Unpatchify, ChannelFastest) {
  const Tensor tokens = torch::arange(1 * 6 * 12).view({1, 6, 12});
  const Tensor images = unpatchify(tokens, patch_grid(4, 6, 2), 2, 3);
  EXPECT_EQ(images.sizes(), (std::vector<int64_t>{1, 3, 4, 6}));
  for (int64_t c = 0; c < 3; ++c) {
    for (int64_t y = 0; y < 4; ++y) {
      for (int64_t x = 0; x < 6; ++x) {
        const int64_t token = y / 2 * 3 + x / 2;
        const int64_t channel = (y % 2 * 2 + x % 2) * 3 + c;
        EXPECT_EQ(images[0][c][y][x].item<int64_t>(), token * 12 + channel);
      }
    }
  }
}

TEST(Patchify, EdgesAndErrors) {
  EXPECT_EQ(patch_grid(8, 4, 2), (Grid{1, 4, 2}));
  EXPECT_THROW(patch_grid(7, 4, 2), Error);
  EXPECT_THROW(patchify(torch::zeros({1, 1, 4, 7}), 2), Error);
  EXPECT_EQ(patchify(torch::zeros({0, 1, 4, 4}), 4).sizes(), (std::vector<int64_t>{0, 1, 16}));
  const Tensor one = normal({1, 1, 4, 4}, 0);
  EXPECT_TRUE(torch::equal(unpatchify(patchify(one, 2), patch_grid(4, 4, 2), 2, 1), one));
}

TEST(Patchify, ClipsFrameByFrame) {
  const Tensor clips = normal({2, 3, 4, 6, 4}, 0);
  const Tensor rows = patchify(clips, 2);
  ASSERT_EQ(rows.sizes(), (std::vector<int64_t>{2, 4 * 3 * 2, 12}));
  for (int64_t f = 0; f < 4; ++f)
    EXPECT_TRUE(torch::equal(rows.narrow(1, f * 6, 6), patchify(clips.select(2, f), 2)));
  const Tensor one = normal({1, 1, 3, 4, 4}, 0);
  EXPECT_TRUE(torch::equal(unpatchify(patchify(one, 2), patch_grid(4, 4, 2, 3), 2, 1), one));
}

TEST(Positions, TwoAxesColumnFirst) {
  const Grid grid{1, 3, 5};
  const Tensor p = sincos_positions(grid, 16, 2);
  ASSERT_EQ(p.sizes(), (std::vector<int64_t>{15, 16}));
  ASSERT_EQ(p.scalar_type(), torch::kDouble);
  for (int64_t n = 0; n < 15; ++n) {
    for (int64_t half = 0; half < 2; ++half) {
      const auto position = static_cast<double>(half == 0 ? n % 5 : n / 5);
      for (int64_t i = 0; i < 4; ++i) {
        const double w = std::pow(10000.0, -static_cast<double>(i) / 4);
        EXPECT_NEAR(p[n][half * 8 + i].item<double>(), std::sin(position * w), 1e-15);
        EXPECT_NEAR(p[n][half * 8 + 4 + i].item<double>(), std::cos(position * w), 1e-15);
      }
    }
  }
}

TEST(Positions, OneAxisIsTheTokenIndex) {
  const Tensor p = sincos_positions({1, 1, 7}, 6, 1);
  for (int64_t n = 0; n < 7; ++n) {
    for (int64_t i = 0; i < 3; ++i) {
      const double w = std::pow(10000.0, -static_cast<double>(i) / 3);
      EXPECT_NEAR(p[n][i].item<double>(), std::sin(n * w), 1e-15);
      EXPECT_NEAR(p[n][3 + i].item<double>(), std::cos(n * w), 1e-15);
    }
  }
  EXPECT_THROW(sincos_positions({1, 1, 7}, 5, 1), Error);
  EXPECT_THROW(sincos_positions({1, 2, 7}, 6, 2), Error);
  EXPECT_THROW(sincos_positions({2, 2, 7}, 8, 2), Error);
}

TEST(TimeFeatures, Golden) {
  const Tensor e = time_features(torch::tensor({700.0, 0.0}, torch::kDouble), 128);
  ASSERT_EQ(e.sizes(), (std::vector<int64_t>{2, 256}));
  EXPECT_NEAR(e[0][0].item<double>(), -.839104, 5e-7);  // cos first
  EXPECT_NEAR(e[0][128].item<double>(), .543971, 5e-7);
  EXPECT_NEAR(e[0][127].item<double>(), .997172, 5e-7);
  EXPECT_NEAR(e[0][255].item<double>(), .075152, 5e-7);
  EXPECT_NEAR(e[0][127].item<double>(), std::cos(700 * std::exp(-std::log(1e4) * 127 / 128)),
              1e-13);
  EXPECT_EQ(e[1].slice(0, 0, 128).min().item<double>(), 1);
  EXPECT_EQ(e[1].slice(0, 128).abs().max().item<double>(), 0);
}

}  // namespace
}  // namespace sigma
