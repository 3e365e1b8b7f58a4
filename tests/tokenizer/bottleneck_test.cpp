// Bottlenecks: gradients, noise, nearest codes, usage and restart against plain formulas.
#include "sigma/tokenizer/bottleneck.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cmath>
#include <deque>
#include <limits>

#include "sigma/tokenizer/vector_quantizer.h"
#include "tests/testing/errors.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using testing::error_of;
using testing::expect_contains;
using torch::Tensor;

Context pass(uint64_t step, int64_t first, int64_t samples) {
  return {.training = true,
          .record = true,
          .rng = {.seed = 3, .step = step},
          .samples = torch::arange(first, first + samples, torch::kInt64)};
}

std::shared_ptr<Bottleneck> make(const BottleneckConfig& config) {
  auto bottleneck = make_bottleneck(config);
  initialize(*bottleneck, 5);
  return bottleneck;
}

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

// ---- kl, norms ----

TEST(Bottleneck, KlOfKnownGaussians) {
  const double ln4 = std::log(4.0);
  const Tensor e = torch::tensor({1.0, 0.0, 0.0, ln4}, torch::kDouble).view({1, 1, 4});
  const Tensor kl = gaussian_kl(split_gaussian(e)).flatten();  // (mu, lv) = (1, 0), (0, ln 4)
  EXPECT_NEAR(kl[0].item<double>(), 0.5, 1e-15);
  EXPECT_NEAR(kl[1].item<double>(), 0.806853, 5e-7);
}

TEST(Bottleneck, GradientsFollowFiniteDifferences) {
  const std::vector<BottleneckConfig> configs = {
      {.kind = "kl", .dim = 3, .kl_weight = 0.7},
      {.kind = "kl", .dim = 3, .kl_weight = 0.7, .kl_reduction = "mean"},
      {.kind = "ae", .dim = 5, .norm = "l2"},
      {.kind = "ae", .dim = 5, .norm = "layer"}};
  for (const auto& config : configs) {
    const auto bottleneck = make(config);
    const int64_t Zin = bottleneck->in_channels();
    const Tensor e = normal({2, 4, Zin}, 1).requires_grad_();
    const Tensor upstream = normal({2, 4, config.dim}, 2);
    const auto loss = [&](const Tensor& x) {
      const Coded coded = bottleneck->forward(x, pass(1, 0, 2));
      Tensor total = (coded.latents * upstream).sum();
      for (const auto& [name, part] : coded.losses) total = total + part;
      return total;
    };
    loss(e).backward();
    const Tensor x = e.detach();
    const double h = 1e-6;
    for (int64_t i = 0; i < x.numel(); ++i) {
      Tensor step = torch::zeros_like(x);
      step.flatten()[i] = h;
      const double slope = (loss(x + step) - loss(x - step)).item<double>() / (2 * h);
      // Rounding of the difference, over 2 h, and h^2 of the third derivative.
      EXPECT_NEAR(e.grad().flatten()[i].item<double>(), slope, 1e-8) << config.kind << config.norm;
    }
  }
}

TEST(Bottleneck, ZeroAndConstantTokensHaveFiniteGradients) {
  for (const std::string norm : {"l2", "layer"}) {
    const Tensor e = torch::zeros({1, 2, 4}).requires_grad_();
    const Coded coded = make({.kind = "ae", .dim = 4, .norm = norm})->forward(e, {});
    EXPECT_TRUE((coded.latents == 0).all().item<bool>());
    (coded.latents * normal({1, 2, 4}, 1, torch::kFloat)).sum().backward();
    EXPECT_TRUE(e.grad().isfinite().all().item<bool>()) << norm;
  }
}

TEST(Bottleneck, NoiseBelongsToTheSample) {
  const auto bottleneck = make({.kind = "kl", .dim = 3});
  const Tensor e = normal({5, 4, 6}, 1, torch::kFloat);
  const Tensor whole = bottleneck->forward(e, pass(2, 10, 5)).latents;
  const Tensor part = bottleneck->forward(e.narrow(0, 3, 2), pass(2, 13, 2)).latents;
  EXPECT_TRUE(torch::equal(whole.narrow(0, 3, 2), part));
  EXPECT_FALSE(torch::equal(whole, bottleneck->forward(e, pass(3, 10, 5)).latents));
  EXPECT_TRUE(torch::equal(bottleneck->forward(e, {}).latents, e.narrow(2, 0, 3)));
}

TEST(Bottleneck, LatentsAreAtLeastFloat32AndLossesNeedGradients) {
  for (const std::string kind : {"ae", "kl", "vq"}) {
    const auto bottleneck = make({.kind = kind, .dim = 2, .codes = 4});
    const Tensor e = normal({1, 3, bottleneck->in_channels()}, 1, torch::kBFloat16);
    EXPECT_EQ(bottleneck->forward(e, {}).latents.scalar_type(), torch::kFloat) << kind;
    EXPECT_EQ(bottleneck->forward(e, {}).losses.empty(), kind == "ae");
    const torch::NoGradGuard no_grad;
    EXPECT_TRUE(bottleneck->forward(e, pass(1, 0, 1)).losses.empty()) << kind;
  }
}

TEST(Bottleneck, SettingsThatDoNotFit) {
  const auto refused = [](const BottleneckConfig& config, const std::string& part) {
    expect_contains(error_of(ErrorKind::kUsage, [&] { make_bottleneck(config); }), part);
  };
  refused({.kind = "kl", .norm = "l2"}, "kl expected none, got l2");
  refused({.kind = "vq", .norm = "layer"}, "vq expected none or l2, got layer");
  refused({.kind = "ae", .dim = 1, .norm = "layer"}, "at least 2, got 1");
  const auto ae = make({.kind = "ae"});
  error_of(ErrorKind::kUsage, [&] { ae->codes(torch::zeros({1}, torch::kInt64)); });

  const auto unread = [](const Json& tree, const std::string& part) {
    BottleneckConfig config;
    expect_contains(
        error_of(ErrorKind::kUsage, [&] { read_config(visit_of(config), tree, "a test"); }), part);
  };
  unread({{"kind", "fsq"}}, "must be one of ae, kl, vq");
  unread({{"kind", "kl"}, {"codes", 8}}, "codes: unknown key");
  unread({{"kind", "vq"}, {"codes", 1}}, "must be in [2, 1048576]");
  unread({{"kind", "vq"}, {"entropy_temperature", 0}}, "must be in (0, 10]");
  unread({{"kind", "vq"}, {"restart_after", 10}}, "restart_after: unknown key");
}

// ---- vq ----

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
