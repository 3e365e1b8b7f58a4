// Masks: counts, independence of the batch, statistics of the ratio, the ramp, errors. Ratios by
// number are a golden file.
#include "sigma/tokenizer/masking.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include <algorithm>
#include <numeric>

#include "sigma/base/philox.h"
#include "tests/testing/errors.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

Context at(std::vector<int64_t> samples, uint64_t step = 3) {
  return {.training = true, .rng = {.seed = 5, .step = step}, .samples = torch::tensor(samples)};
}

Context first(int64_t count, uint64_t step = 3) {
  return {.rng = {.seed = 5, .step = step}, .samples = torch::arange(count)};
}

TEST(Mask, HidesTheSmallestWords) {
  const int64_t N = 13;
  const Mask mask =
      draw_mask({.policy = "replace", .low = 0.5, .high = 0.5}, N, at({6, 2}));  // M = 7
  for (int64_t row = 0; row < 2; ++row) {
    const uint64_t sample = uint64_t{3} << 32 | (row == 0 ? 6 : 2);
    const auto key = [&](int64_t n) {
      const PhiloxWords words =
          philox(5, random_stream(Purpose::kMask, 257), sample, static_cast<uint32_t>(n / 4));
      return uint64_t{words.w[n % 4]} << 32 | static_cast<uint64_t>(n);
    };
    std::vector<int64_t> order(N);
    std::iota(order.begin(), order.end(), int64_t{0});
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return key(a) < key(b); });
    std::vector<int64_t> seen(order.begin() + 7, order.end());
    std::sort(seen.begin(), seen.end());
    EXPECT_EQ(list(mask.visible[row]), seen);
    for (int64_t i = 0; i < N; ++i)
      EXPECT_EQ(mask.hidden[row][order[static_cast<size_t>(i)]].item<bool>(), i < 7);
  }
}

TEST(Mask, ASamplesMaskIsTheSameInAnyBatch) {
  for (const char* per : {"sample", "step"}) {
    const MaskConfig config{.policy = "replace", .low = 0.1, .high = 0.9, .per = per};
    const Tensor all = draw_mask(config, 49, first(64)).hidden;
    EXPECT_TRUE(
        torch::equal(draw_mask(config, 49, at({7, 40})).hidden, torch::stack({all[7], all[40]})));
    EXPECT_FALSE(torch::equal(draw_mask(config, 49, first(64, 4)).hidden, all));
    const Tensor counts = all.sum(1);
    EXPECT_EQ((counts == counts[0]).all().item<bool>(), std::string(per) == "step");
  }
}

TEST(Mask, VisibleNeedsEqualCounts) {
  const MaskConfig wide{.policy = "replace", .low = 0.1, .high = 0.9};
  EXPECT_FALSE(draw_mask(wide, 64, first(32)).visible.defined());
  const Mask mask = draw_mask({.policy = "drop", .distribution = "truncated_normal", .per = "step"},
                              64, first(32));
  const int64_t M = mask.hidden[0].sum().item<int64_t>();
  ASSERT_EQ(mask.visible.sizes(), (std::vector<int64_t>{32, 64 - M}));
  EXPECT_FALSE(mask.hidden.gather(1, mask.visible).any().item<bool>());
  EXPECT_TRUE((mask.visible.diff(1, 1) > 0).all().item<bool>());
  EXPECT_FALSE(draw_mask({}, 64, first(2)).hidden.defined());
}

TEST(Mask, CountsAreExact) {
  const auto count = [](double ratio, int64_t N) {
    return hidden_count(torch::tensor({ratio}, torch::kDouble), N).item<int64_t>();
  };
  EXPECT_EQ(count(0.07, 100), 7);  // 100 * 0.07 is above 7 in float64
  EXPECT_EQ(count(0.0701, 100), 8);
  EXPECT_EQ(count(0, 16), 1);
  EXPECT_EQ(count(0.99, 16), 15);
  EXPECT_EQ(count(0.9, 2), 1);
}

TEST(Mask, RatiosAreDistributedAsSaid) {
  const Tensor u = (torch::arange(200000, torch::kDouble) + 0.5) / 200000;
  const Tensor normal = mask_ratio({.distribution = "truncated_normal"}, u);
  EXPECT_NEAR(normal.mean().item<double>(), 0.50521, 5e-6);
  EXPECT_NEAR(normal.std(0).item<double>(), 0.05698, 5e-6);
  EXPECT_NEAR(normal.median().item<double>(), 0.50766, 5e-6);
  const Tensor uniform = mask_ratio({}, u);
  EXPECT_NEAR(uniform.mean().item<double>(), 0.5, 1e-9);
  EXPECT_NEAR(uniform.std(0).item<double>(), 0.2 / std::sqrt(12), 1e-6);

  // Drawn masks: N so large that rounding up is small, and 1/2N of it taken off.
  const Mask mask =
      draw_mask({.policy = "replace", .distribution = "truncated_normal"}, 400, first(4000));
  const Tensor share = (mask.hidden.to(torch::kDouble).sum(1) - 0.5) / 400;
  EXPECT_NEAR(share.mean().item<double>(), 0.50521, 4 * 0.05698 / std::sqrt(4000.));
  EXPECT_NEAR(share.std(0).item<double>(), 0.05698, 0.003);
  // No patch is hidden more often than others: deviation of a share of 4000 is 0.008.
  EXPECT_LE((mask.hidden.to(torch::kDouble).mean(0) - 0.50521).abs().max().item<double>(), 0.04);
}

TEST(Mask, TheRampEndsAfterItsSteps) {
  const MaskConfig config{.policy = "replace",
                          .low = 0.6,
                          .high = 0.6,
                          .end_low = 0.2,
                          .end_high = 0.2,
                          .ramp_steps = 40};
  const auto hidden = [&](uint64_t step) {
    return draw_mask(config, 100, first(1, step)).hidden.sum().item<int64_t>();
  };
  EXPECT_EQ(hidden(0), 60);
  EXPECT_EQ(hidden(10), 50);
  EXPECT_EQ(hidden(39), 21);
  EXPECT_EQ(hidden(40), 20);
  EXPECT_EQ(hidden(1000), 20);
}

TEST(Mask, SettingsThatDoNotFitAreNamed) {
  const auto refused = [](const MaskConfig& config, const std::string& part) {
    testing::expect_contains(testing::error_of(ErrorKind::kUsage, [&] { check_mask(config); }),
                             part);
  };
  refused({.low = 0.7}, "mask.low: expected at most high = 0.6, got 0.7");
  refused({.end_low = 0.1, .ramp_steps = 5},
          "mask.end_low: expected at most end_high = 0, got 0.1");
  refused({.policy = "drop"}, "mask.per: expected step with policy drop");
  check_mask({.policy = "drop", .per = "step"});
  check_mask({.end_low = 0.1});  // no ramp
  testing::expect_contains(
      testing::error_of(ErrorKind::kUsage, [] { draw_mask({.policy = "replace"}, 1, first(1)); }),
      "an image of 1 patches");
  const auto read = [](const Json& tree) {
    MaskConfig config;
    read_config(visit_of(config), tree, "test");
  };
  testing::expect_contains(testing::error_of(ErrorKind::kUsage, [&] { read({{"high", 1.0}}); }),
                           "[0, 1)");
}

}  // namespace
}  // namespace sigma
