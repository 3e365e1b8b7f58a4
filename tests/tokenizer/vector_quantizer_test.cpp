// Vector quantisation: nearest codes, usage and restart against plain formulas.
#include "sigma/tokenizer/vector_quantizer.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cmath>
#include <deque>
#include <limits>

#include "tests/testing/numbers.h"
#include "tests/tokenizer/small_bottleneck.h"

namespace sigma {
namespace {

using torch::Tensor;

Tensor buffer(const Bottleneck& bottleneck, const std::string& name) {
  return bottleneck.named_buffers()[name];
}

Tensor codebook(const Bottleneck& bottleneck) { return bottleneck.named_parameters()["codebook"]; }

/// All buffers and the codebook, copied.
std::vector<Tensor> state(const Bottleneck& bottleneck) {
  std::vector<Tensor> out = {codebook(bottleneck).detach().clone()};
  for (const auto& item : bottleneck.named_buffers()) out.push_back(item.value().clone());
  return out;
}

void expect_equal(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(torch::equal(a[i], b[i])) << i;
}

TEST(VectorQuantizer, NearestOverManyTilesAndLowestOfEquals) {
  Tensor codes = normal({1 << 20, 3}, 1);  // eight rows a tile
  codes[700001] = codes[123];
  const Tensor places = torch::tensor(
      {0, 700001, 123, 1048575, 77, 77, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18},
      torch::kInt64);
  Tensor expected = places.clone();
  expected[1] = 123;
  EXPECT_TRUE(torch::equal(nearest_codes(codes.index_select(0, places), codes), expected));
}

TEST(VectorQuantizer, NearestIsTheBruteForce) {
  for (const std::string norm : {"none", "l2"}) {
    const Tensor z = normalise_latents(normal({300, 6}, 1, torch::kFloat), norm);
    const Tensor codes = normalise_latents(normal({50, 6}, 2, torch::kFloat), norm);
    const Tensor found = nearest_codes(z, codes);
    const Tensor exact = (z.unsqueeze(1) - codes).to(torch::kDouble).square().sum(2);
    const Tensor excess =
        exact.gather(1, found.unsqueeze(1)).squeeze(1) - std::get<0>(exact.min(1));
    const Tensor scale = z.square().sum(1) + codes.square().sum(1).max();
    EXPECT_TRUE((excess <= 8 * std::numeric_limits<float>::epsilon() * scale).all().item<bool>());
  }
}

TEST(VectorQuantizer, EntropyOfKnownChoices) {
  // Four codes far apart; constants of the 1e-5 inside the logarithm.
  const Tensor codes = torch::eye(4, torch::kDouble) * 10;
  const auto entropy = [&](const Tensor& z) { return code_entropy(z, codes, 0.01).item<double>(); };
  EXPECT_NEAR(entropy(codes), -1.386254, 5e-7);                            // each code once
  EXPECT_NEAR(entropy(torch::zeros({3, 4}, torch::kDouble)), 4e-5, 1e-8);  // undecided
  EXPECT_NEAR(entropy(codes.narrow(0, 2, 1)), 1e-5, 1e-9);                 // all on one code
}

TEST(VectorQuantizer, StraightThrough) {
  for (const std::string norm : {"none", "l2"}) {
    const auto vq = make({.kind = "vq", .dim = 4, .norm = norm, .codes = 8});
    const Tensor e = normal({2, 3, 4}, 1, torch::kFloat).requires_grad_();
    const Tensor upstream = normal({2, 3, 4}, 2, torch::kFloat);
    const Coded coded = vq->forward(e, {});
    const Tensor z = normalise_latents(e, norm);
    EXPECT_TRUE(torch::equal(coded.latents, z + (vq->codes(coded.indices) - z)));
    const auto through = torch::autograd::grad({(coded.latents * upstream).sum()}, {e});
    const auto direct = torch::autograd::grad({(z * upstream).sum()}, {e});
    EXPECT_TRUE(torch::equal(through[0], direct[0])) << norm;
  }
}

TEST(CodeStatistics, EqualUse) {
  const CodeStatistics some = code_statistics(torch::tensor({0, 7, 7, 0, 7, 0}, torch::kInt64));
  EXPECT_DOUBLE_EQ(some.usage.item<double>(), 0.5);
  EXPECT_NEAR(some.perplexity.item<double>(), 3, 1e-14);
  const CodeStatistics none = code_statistics(torch::zeros({4}, torch::kInt64));
  EXPECT_EQ(none.usage.item<double>(), 0);
  EXPECT_EQ(none.perplexity.item<double>(), 1);
}

TEST(CodeUsage, CountsTheLastWindow) {
  constexpr int64_t kCodes = 7, kWindow = 11;
  for (const bool moved : {false, true}) {
    CodeUsage usage(kCodes, kWindow);
    if (moved) usage.to(torch::kFloat);  // also moves whole numbers
    std::deque<int64_t> last;
    const std::vector<int64_t> sizes = {3, 4, 2, 5, 11, 1, 25, 6, 10, 0, 12};
    for (size_t step = 0; step < sizes.size(); ++step) {
      const auto site = static_cast<uint32_t>(step);
      const Tensor indices = (normal({sizes[step]}, site) * 3).abs().to(torch::kInt64) % kCodes;
      usage.record(indices);
      for (const int64_t code : list(indices)) last.push_back(code);
      while (last.size() > kWindow) last.pop_front();
      std::vector<int64_t> expected(kCodes, 0);
      for (const int64_t code : last) ++expected[static_cast<size_t>(code)];
      EXPECT_EQ(list(usage.counts()), expected) << step;
    }
  }
}

TEST(CodeUsage, OnlyPassesThatTrainAndRecordCount) {
  const auto vq = make({.kind = "vq", .dim = 2, .codes = 4, .restart = "threshold"});
  const Tensor e = normal({2, 3, 2}, 1, torch::kFloat);
  const auto before = state(*vq);
  Context context = pass(1, 0, 2);
  context.record = false;
  EXPECT_TRUE(vq->forward(e, context).statistics.empty());
  context = pass(1, 0, 2);
  context.training = false;
  EXPECT_TRUE(vq->forward(e, context).statistics.empty());
  codebook(*vq).set_requires_grad(false);
  for (uint64_t step = 1; step < 4; ++step)
    EXPECT_TRUE(vq->forward(e, pass(step, 0, 2)).statistics.empty());
  expect_equal(before, state(*vq));
  codebook(*vq).set_requires_grad(true);
  const Coded coded = vq->forward(e, pass(4, 0, 2));
  EXPECT_EQ(buffer(*vq, "usage.counts").sum().item<int64_t>(), 6);
  const Tensor used = std::get<0>(torch::_unique(coded.indices));
  EXPECT_DOUBLE_EQ(coded.statistics.at("vq.usage").item<double>(),
                   static_cast<double>(used.numel()) / 4);
}

// ---- restart ----

// p falls below .5/V after 69 steps without use, so restart_after decides where it is more.
BottleneckConfig restarting(int64_t after) {
  return {.kind = "vq",
          .dim = 2,
          .codes = 4,
          .restart = "threshold",
          .restart_below = 0.5,
          .restart_after = after};
}

/// Codes 0 and 1 near the tokens, 2 and 3 far away.
std::shared_ptr<Bottleneck> two_dead_codes(int64_t after) {
  auto vq = make(restarting(after));
  const torch::NoGradGuard no_grad;
  codebook(*vq).copy_(torch::tensor({1.F, 0.F, -1.F, 0.F, 90.F, 90.F, 80.F, 80.F}).view({4, 2}));
  return vq;
}

Tensor tokens_of(uint64_t step) {
  const Tensor sides = torch::tensor({1.F, -1.F}).view({2, 1, 1});
  return torch::cat({sides.expand({2, 3, 1}), torch::zeros({2, 3, 1})}, 2) +
         0.1 * normal({2, 3, 2}, static_cast<uint32_t>(step), torch::kFloat);
}

TEST(CodeRestart, DeadCodesBecomeTokensOfTheStepBefore) {
  const auto vq = two_dead_codes(1);
  uint64_t step = 1;
  for (;; ++step) {
    ASSERT_LT(step, 200u);
    const Tensor before = codebook(*vq).detach().clone();
    const Coded coded = vq->forward(tokens_of(step), pass(step, 0, 2));
    const Tensor after = codebook(*vq).detach();
    EXPECT_TRUE(torch::equal(before.narrow(0, 0, 2), after.narrow(0, 0, 2)));
    const std::vector<int64_t> restarted = list(vq->restarted());
    if (restarted == std::vector<int64_t>{0, 0, 0, 0}) {
      EXPECT_TRUE(torch::equal(before, after));
      continue;
    }
    EXPECT_EQ(restarted, (std::vector<int64_t>{0, 0, 1, 1}));
    const Tensor tokens = tokens_of(step - 1).flatten(0, 1);
    for (const int64_t code : {2, 3})
      EXPECT_TRUE((tokens == after[code]).all(1).any().item<bool>()) << code;
    // It takes part at once.
    EXPECT_TRUE(torch::equal(vq->codes(coded.indices),
                             after.index_select(0, coded.indices.flatten()).view({2, 3, 2})));
    EXPECT_TRUE(
        torch::equal(coded.indices.flatten(), nearest_codes(tokens_of(step).flatten(0, 1), after)));
    const Tensor p = buffer(*vq, "restart.probability");
    EXPECT_EQ(p[2].item<float>(), 0.25F);
    break;
  }
  EXPECT_EQ(step, 70u);  // .99^69 < .5 < .99^68; 69 steps are over with the first pass of the next
}

TEST(CodeRestart, WaitsForRestartAfter) {
  const auto vq = two_dead_codes(100);
  const Tensor far = torch::tensor({90.F, 90.F});
  std::vector<uint64_t> steps;
  for (uint64_t step = 1; step <= 320; ++step) {
    vq->forward(tokens_of(step), pass(step, 0, 2));
    if (vq->restarted()[2].item<bool>()) steps.push_back(step);
    const torch::NoGradGuard no_grad;
    codebook(*vq)[2].copy_(far);  // dead again
  }
  EXPECT_EQ(steps, (std::vector<uint64_t>{101, 201, 301}));
}

TEST(CodeRestart, MicroBatchesCountAsOneBatchAndAResumedRunGoesOn) {
  auto whole = two_dead_codes(1);
  auto parts = two_dead_codes(1);
  bool any = false;
  for (uint64_t step = 1; step <= 80; ++step) {
    const Tensor e = tokens_of(step);
    whole->forward(e, pass(step, 0, 2));
    for (const int64_t sample : {0, 1})
      parts->forward(e.narrow(0, sample, 1), pass(step, sample, 1));
    expect_equal(state(*whole), state(*parts));
    any = any || whole->restarted().any().item<bool>();
    if (step % 23 != 0) continue;
    // A new process knows the saved tensors alone.
    auto fresh = make(restarting(1));
    const torch::NoGradGuard no_grad;
    codebook(*fresh).copy_(codebook(*parts));
    for (auto& item : fresh->named_buffers()) item.value().copy_(buffer(*parts, item.key()));
    parts = fresh;
  }
  EXPECT_TRUE(any);
}

}  // namespace
}  // namespace sigma
