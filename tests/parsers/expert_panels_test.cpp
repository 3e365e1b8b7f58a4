// The panels of the mixture of experts without torch: every access under the sanitizers, and exact
// values, since sums of small whole numbers do not round.
#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <vector>

#include "sigma/base/lanes.h"
#include "sigma/moe/kernels/panels.h"

namespace sigma::kernels {
namespace {

using Floats = std::vector<float>;

constexpr float kPoison = std::numeric_limits<float>::quiet_NaN();

class Panels : public ::testing::TestWithParam<int> {
 protected:
  std::mt19937 random{static_cast<uint32_t>(GetParam())};
  int64_t from_to(int64_t first, int64_t last) {
    return first + static_cast<int64_t>(random() % static_cast<uint64_t>(last - first + 1));
  }
  Floats whole_numbers(int64_t count) {
    Floats out(static_cast<size_t>(count));
    for (float& x : out) x = static_cast<float>(from_to(-4, 4));
    return out;
  }
};

TEST_P(Panels, AreTheProductsTheyStandFor) {
  const int64_t n = from_to(1, kPanelRows), lanes = padded(n);
  const int64_t C = from_to(1, 150), wide = from_to(1, 40), tokens = from_to(1, 20);
  const Floats x = whole_numbers(tokens * C), w = whole_numbers(wide * C),
               bias = whole_numbers(wide);
  std::vector<int32_t> row(static_cast<size_t>(n));
  for (int32_t& r : row) r = static_cast<int32_t>(from_to(0, tokens - 1));
  const auto at = [](const Floats& m, int64_t stride, int64_t r, int64_t c) {
    return m[static_cast<size_t>(r * stride + c)];
  };
  const auto x_of = [&](int64_t i, int64_t c) { return at(x, C, row[static_cast<size_t>(i)], c); };

  Floats panel(static_cast<size_t>(C * lanes), kPoison);
  gather_panel(x.data(), row.data(), n, C, panel.data());
  for (int64_t c = 0; c < C; ++c)
    for (int64_t i = 0; i < lanes; ++i)
      ASSERT_EQ(at(panel, lanes, c, i), i < n ? x_of(i, c) : 0.0f);

  // Two tokens may be the same row: both are added, in order.
  const Floats weight = whole_numbers(lanes), old = whole_numbers(tokens * C);
  const int64_t from = from_to(0, C), to = from_to(from, C);
  for (const bool weighted : {false, true}) {
    Floats y = old, y_expected = old;
    add_panel(panel.data(), row.data(), weighted ? weight.data() : nullptr, n, C, from, to,
              y.data());
    for (int64_t i = 0; i < n; ++i)
      for (int64_t c = from; c < to; ++c)
        y_expected[static_cast<size_t>(row[static_cast<size_t>(i)] * C + c)] +=
            (weighted ? weight[static_cast<size_t>(i)] : 1.0f) * x_of(i, c);
    ASSERT_EQ(y, y_expected);
  }

  Floats turned(x.size(), kPoison);
  transpose(x.data(), tokens, C, turned.data());
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t c = 0; c < C; ++c) ASSERT_EQ(at(turned, tokens, c, t), at(x, C, t, c));

  const Floats w_turned = [&] {
    Floats out(w.size());
    transpose(w.data(), wide, C, out.data());
    return out;
  }();
  for (const bool biased : {false, true})
    for (const Matrix& left : {Matrix{w.data(), C, 1}, Matrix{w_turned.data(), 1, wide}}) {
      Floats out(static_cast<size_t>(wide * lanes), kPoison);
      product_panel(left, wide, C, panel.data(), lanes, biased ? bias.data() : nullptr, out.data());
      for (int64_t r = 0; r < wide; ++r)
        for (int64_t i = 0; i < lanes; ++i) {
          float sum = biased ? bias[static_cast<size_t>(r)] : 0.0f;
          for (int64_t c = 0; c < C; ++c) sum += at(w, C, r, c) * at(panel, lanes, c, i);
          ASSERT_EQ(at(out, lanes, r, i), sum);
        }
    }

  const int64_t blocks_wide = (C + kPanelRows - 1) / kPanelRows;
  Floats blocks(static_cast<size_t>(blocks_wide * n * kPanelRows), kPoison);
  gather_blocks(x.data(), row.data(), n, C, blocks.data());
  const Floats grad = whole_numbers(wide * lanes), before = whole_numbers(wide * C);
  for (const bool add : {false, true}) {
    Floats sum = add ? before : Floats(before.size(), kPoison);
    outer(grad.data(), wide, lanes, blocks.data(), n, C, add, sum.data());
    for (int64_t r = 0; r < wide; ++r)
      for (int64_t c = 0; c < C; ++c) {
        float expected = add ? at(before, C, r, c) : 0.0f;
        for (int64_t i = 0; i < n; ++i) expected += at(grad, lanes, r, i) * x_of(i, c);
        ASSERT_EQ(at(sum, C, r, c), expected);
      }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, Panels, ::testing::Range(0, 60));

}  // namespace
}  // namespace sigma::kernels
