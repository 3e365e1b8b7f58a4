// Rotary embeddings: golden numbers and properties of the specification.
#include "sigma/nn/rope.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>

#include "sigma/base/error.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

Rope make(const RopeConfig& config, int64_t head_dim, const TokenLayout& layout,
          torch::ScalarType dtype = torch::kDouble) {
  return Rope(config, head_dim, layout, dtype, torch::kCPU);
}

TokenLayout grid(int64_t f, int64_t y, int64_t x, int64_t before = 0, int64_t after = 0) {
  TokenLayout layout;
  layout.before = before;
  layout.grid = {f, y, x};
  layout.after = after;
  return layout;
}

void expect_rotated(const Rope& rope, const std::vector<double>& position,
                    const std::vector<double>& x, const std::vector<double>& expected) {
  const Tensor p = torch::tensor(position, torch::kDouble).view({1, -1});
  const Tensor out = rope.rotate(torch::tensor(x, torch::kDouble).view({1, 1, 1, -1}), rope.at(p));
  EXPECT_LE(error(out.flatten(), torch::tensor(expected, torch::kDouble)), 5e-7) << out;
}

TEST(Rope, GoldenNumbers) {
  expect_rotated(make({}, 4, grid(1, 1, 4)), {3}, {1, 0, 1, 0},
                 {-.989992, .141120, .999550, .029996});
  RopeConfig half;
  half.pairing = "half";
  expect_rotated(make(half, 4, grid(1, 1, 4)), {3}, {1, 1, 0, 0},
                 {-.989992, .999550, .141120, .029996});
  RopeConfig axes;
  axes.axis_dims = {4, 4};
  expect_rotated(make(axes, 8, grid(1, 2, 3)), {1, 2}, {1, 0, 1, 0, 1, 0, 1, 0},
                 {.540302, .841471, .999950, .010000, -.416147, .909297, .999800, .019999});
}

TEST(Rope, DefaultAxisDims) {
  using Dims = std::vector<int64_t>;
  EXPECT_EQ(rope_axis_dims({}, 64, 1), Dims{64});
  EXPECT_EQ(rope_axis_dims({}, 64, 2), (Dims{32, 32}));
  EXPECT_EQ(rope_axis_dims({}, 64, 3), (Dims{24, 20, 20}));
  EXPECT_EQ(rope_axis_dims({}, 128, 3), (Dims{44, 42, 42}));
  RopeConfig partial;
  partial.axis_dims = {4, 6, 6};
  EXPECT_EQ(rope_axis_dims(partial, 24, 3), (Dims{4, 6, 6}));
  partial.axis_dims = {3, 5};
  EXPECT_THROW(rope_axis_dims(partial, 24, 2), Error);  // odd
  partial.axis_dims = {16, 16};
  EXPECT_THROW(rope_axis_dims(partial, 24, 2), Error);  // above head_dim
  partial.axis_dims = {16};
  EXPECT_THROW(rope_axis_dims(partial, 24, 2), Error);  // the number of axes
  EXPECT_THROW(rope_axis_dims({}, 6, 2), Error);        // 6 % 4
}

TEST(Rope, TableIsTheFormulaInRasterOrder) {
  const Rope rope = make({}, 24, grid(2, 3, 4));
  const auto dims = rope_axis_dims({}, 24, 3);
  for (int64_t n = 0; n < 24; ++n) {
    const std::array<int64_t, 3> p = {n / 12, n / 4 % 3, n % 4};
    int64_t column = 0;
    for (int a = 0; a < 3; ++a) {
      for (int64_t k = 0; k < dims[a] / 2; ++k, ++column) {
        const double angle = p[a] * std::pow(10000.0, -2.0 * k / dims[a]);
        EXPECT_NEAR(rope.table().cos[n][column].item<double>(), std::cos(angle), 1e-15);
        EXPECT_NEAR(rope.table().sin[n][column].item<double>(), std::sin(angle), 1e-15);
      }
    }
  }
}

TEST(Rope, NormsAreKeptAndOtherChannelsPass) {
  for (const char* pairing : {"interleaved", "half"}) {
    RopeConfig config;
    config.pairing = pairing;
    config.axis_dims = {8};
    const Rope rope = make(config, 12, grid(1, 1, 9));
    const Tensor x = normal({2, 3, 9, 12}, 0);
    const Tensor out = rope.rotate(x, rope.table());
    EXPECT_LE(error(out.norm(2, -1), x.norm(2, -1)), 1e-14);
    EXPECT_TRUE(torch::equal(out.slice(-1, 8), x.slice(-1, 8)));
    EXPECT_GT(error(out, x), 0.1);
  }
}

TEST(Rope, ProductsDependOnDifferencesOnly) {
  for (const char* pairing : {"interleaved", "half"}) {
    RopeConfig config;
    config.pairing = pairing;
    const Rope rope = make(config, 16, grid(1, 3, 3));
    const Tensor q = normal({1, 1, 1, 16}, 1);
    const Tensor k = normal({1, 1, 1, 16}, 2);
    const auto product = [&](double qy, double qx, double ky, double kx) {
      const Tensor a = rope.rotate(q, rope.at(torch::tensor({{qy, qx}}, torch::kDouble)));
      const Tensor b = rope.rotate(k, rope.at(torch::tensor({{ky, kx}}, torch::kDouble)));
      return (a * b).sum().item<double>();
    };
    EXPECT_NEAR(product(1, 2, 3, 5), product(11, 32, 13, 35), 1e-12);
    EXPECT_GT(std::abs(product(1, 2, 3, 5) - product(1, 2, 3, 6)), 1e-3);
  }
}

TEST(Rope, OneFrameLeavesTheFrameChannels) {
  RopeConfig config;
  config.axis_dims = {4, 6, 6};
  const Rope rope = make(config, 16, grid(2, 2, 2));
  const Tensor x = normal({1, 1, 4, 16}, 1);
  const Tensor p =
      torch::tensor({{0., 0., 0.}, {0., 0., 1.}, {0., 1., 0.}, {0., 1., 1.}}, torch::kDouble);
  EXPECT_TRUE(torch::equal(rope.rotate(x, rope.at(p)).slice(-1, 0, 4), x.slice(-1, 0, 4)));
}

TEST(Rope, TokensBeforeAndAfterAreNotRotated) {
  const Rope rope = make({}, 8, grid(1, 2, 3, 2, 3));
  const Tensor x = normal({1, 2, 11, 8}, 1);
  const Tensor out = rope.rotate(x, rope.table());
  EXPECT_TRUE(torch::equal(out.slice(2, 0, 2), x.slice(2, 0, 2)));
  EXPECT_TRUE(torch::equal(out.slice(2, 8), x.slice(2, 8)));
  const Rope plain = make({}, 8, grid(1, 2, 3));
  EXPECT_TRUE(torch::equal(out.slice(2, 2, 8), plain.rotate(x.slice(2, 2, 8), plain.table())));
}

TEST(Rope, VisibleTokensTakeTheirGridPositions) {
  TokenLayout layout = grid(1, 2, 3, 1);
  layout.visible = torch::tensor({{5, 0}, {1, 3}}, torch::kInt64);
  const Rope rope = make({}, 8, layout);
  const Rope whole = make({}, 8, grid(1, 2, 3));
  const Tensor x = normal({2, 1, 3, 8}, 1);
  const Tensor out = rope.rotate(x, rope.table());
  for (int64_t b = 0; b < 2; ++b) {
    EXPECT_TRUE(torch::equal(out[b][0][0], x[b][0][0]));
    for (int64_t n = 0; n < 2; ++n) {
      const int64_t token = layout.visible[b][n].item<int64_t>();
      const Tensor one =
          rotate_pairs(x[b][0][n + 1].view({1, 1, 1, 8}), whole.table().cos[token].view({1, -1}),
                       whole.table().sin[token].view({1, -1}), true);
      EXPECT_LE(error(out[b][0][n + 1], one.flatten()), 1e-15);
    }
  }
}

TEST(Rope, Float32TablesAreRoundedFloat64Ones) {
  const Tensor far = torch::tensor({{32767.}, {1048575.}}, torch::kDouble);
  const Rope wide = make({}, 128, grid(1, 1, 2), torch::kDouble);
  const Rope narrow = make({}, 128, grid(1, 1, 2), torch::kFloat);
  EXPECT_EQ(narrow.at(far).cos.scalar_type(), torch::kFloat);
  EXPECT_TRUE(torch::equal(narrow.at(far).cos, wide.at(far).cos.to(torch::kFloat)));
  EXPECT_TRUE(torch::equal(narrow.at(far).sin, wide.at(far).sin.to(torch::kFloat)));
  // The same angle in float64 by the formula: float32 angles would be off by 1.7e-3 here.
  const double angle = 32767 * std::pow(10000.0, -2.0 * 5 / 128);
  EXPECT_NEAR(narrow.at(far).cos[0][5].item<double>(), std::cos(angle), 1e-7);
}

TEST(Rope, SixteenBitsAreRotatedInFloat32) {
  const Rope rope = make({}, 8, grid(1, 1, 5), torch::kFloat);
  const Tensor x = normal({1, 1, 5, 8}, 1).to(torch::kBFloat16);
  const Tensor out = rope.rotate(x, rope.table());
  EXPECT_EQ(out.scalar_type(), torch::kBFloat16);
  EXPECT_TRUE(
      torch::equal(out, rope.rotate(x.to(torch::kFloat), rope.table()).to(torch::kBFloat16)));
}

TEST(Rope, BackwardTurnsTheOtherWay) {
  const Rope rope = make({}, 8, grid(1, 1, 5));
  const Tensor x = normal({1, 1, 5, 8}, 1).requires_grad_();
  const Tensor g = normal({1, 1, 5, 8}, 2);
  (rope.rotate(x, rope.table()) * g).sum().backward();
  EXPECT_LE(error(x.grad(), rotate_pairs(g, rope.table().cos, -rope.table().sin, true)), 1e-15);
}

TEST(Rope, ViewsOfOddStridesAndOffsets) {
  const Tensor wide = normal({2, 3, 5, 7}, 1), angle = normal({5, 3}, 2);
  const Tensor x = wide.narrow(3, 1, 6);
  EXPECT_LE(error(rotate_pairs(x, angle.cos(), angle.sin(), true),
                  rotate_pairs(x.contiguous(), angle.cos(), angle.sin(), true)),
            1e-15);
}

TEST(Rope, TablesPerHeadBroadcast) {
  const Tensor x = normal({2, 3, 5, 8}, 1);
  const Tensor angle = normal({3, 5, 4}, 2);
  const Tensor out = rotate_pairs(x, angle.cos(), angle.sin(), false);
  for (int64_t h = 0; h < 3; ++h) {
    EXPECT_LE(error(out.narrow(1, h, 1),
                    rotate_pairs(x.narrow(1, h, 1), angle[h].cos(), angle[h].sin(), false)),
              1e-15);
  }
}

}  // namespace
}  // namespace sigma
