// Routers and balance: what golden files do not show. Edges, independence of images, the bias loop.
#include "sigma/moe/router.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include "sigma/moe/layer.h"
#include "tests/testing/errors.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

TEST(Router, ABadLogitNeverGivesABadIndex) {
  Tensor logits = normal({6, 8}, 1);
  logits[2] = std::nan("");
  logits[3][5] = std::numeric_limits<double>::infinity();
  for (const RouterConfig& config :
       {RouterConfig{}, RouterConfig{.score = "sigmoid", .groups = 4, .top_groups = 2},
        RouterConfig{.kind = "expert_choice"}}) {
    const Routing routing = route(config, 2, logits, {}, 2);
    EXPECT_TRUE(((routing.pair_expert >= 0) & (routing.pair_expert < 8)).all().item<bool>());
    EXPECT_TRUE(((routing.pair_token >= 0) & (routing.pair_token < 6)).all().item<bool>());
    // Other tokens stay exact.
    const Tensor clean = torch::cat({logits.slice(0, 0, 2), logits.slice(0, 4)});
    if (config.kind != "token_choice") continue;
    const Routing rest = route(config, 2, clean, {}, 2);
    EXPECT_TRUE(torch::equal(routing.pair_weight.slice(0, 0, 4), rest.pair_weight.slice(0, 0, 4)));
  }
}

TEST(Router, Float32ChoosesAsTheStableSortOfFloat64DoesAmongTies) {
  const Tensor logits = (normal({50, 16}, 9) * 2).round();  // few values: many ties
  for (const int64_t K : {1, 3, 16})
    EXPECT_TRUE(torch::equal(route({}, K, logits.to(torch::kFloat), {}, 1).pair_expert,
                             route({}, K, logits, {}, 1).pair_expert))
        << K;
}

TEST(Router, ExpertChoiceIsOneImagesOwnAffair) {
  const RouterConfig config{.kind = "expert_choice", .capacity = 1.2};
  const Tensor a = normal({35, 6}, 1), b = normal({35, 6}, 2), c = normal({35, 6}, 3);
  const Routing one = route(config, 0, torch::cat({a, b}), {}, 2);
  const Routing other = route(config, 0, torch::cat({a, c}), {}, 2);
  const int64_t k = 7;  // floor(35 * 1.2 / 6): both published roundings give 6
  ASSERT_EQ(one.pair_token.size(0), 2 * 6 * k);
  EXPECT_TRUE(torch::equal(one.pair_token.slice(0, 0, 6 * k), other.pair_token.slice(0, 0, 6 * k)));
  EXPECT_EQ(route({.kind = "expert_choice", .capacity = 2.3}, 0, normal({100, 5}, 4), {}, 1)
                .pair_token.size(0),
            5 * 46);
  EXPECT_EQ(route(config, 0, normal({1, 6}, 5), {}, 1).pair_token.size(0), 6);  // at least one
  EXPECT_EQ(route(config, 0, torch::zeros({0, 6}), {}, 0).pair_token.size(0), 0);
}

TEST(Router, SettingsThatDoNotFitAreNamed) {
  const auto refused = [](const RouterConfig& config, int64_t E, int64_t K,
                          const std::string& part) {
    testing::expect_contains(
        testing::error_of(ErrorKind::kUsage, [&] { check_router(config, E, K); }), part);
  };
  refused({}, 2, 3, "num_chosen: expected at most num_experts = 2, got 3");
  refused({.groups = 3}, 8, 2, "groups: expected a divisor of num_experts = 8, got 3");
  refused({.groups = 2, .top_groups = 3}, 8, 2, "top_groups: expected at most groups = 2, got 3");
  refused({.groups = 4}, 8, 3, "at most 2 experts in top_groups = 1, got 3");
  refused({.groups = 8, .top_groups = 4, .group_score = "top2_sum"}, 8, 2, "groups of at least 2");
  refused({.normalize = true}, 8, 1, "normalize");
  refused({.kind = "expert_choice", .capacity = 9}, 8, 2, "capacity: expected at most num_experts");
}

MixtureOfExperts* biased(std::shared_ptr<MixtureOfExperts>& keep, double rate) {
  MoeConfig config{.num_experts = 16, .num_chosen = 2, .num_shared = 0};
  config.router.score = "sigmoid";
  config.router.normalize = true;
  config.balance.bias_rate = rate;
  keep = std::make_shared<MixtureOfExperts>(8, config);
  initialize(*keep, 1);
  const torch::NoGradGuard no_grad;
  // Some experts are far more popular: the last input channel is 1.
  keep->named_parameters()["router"].copy_(normal({16, 8}, 4, torch::kFloat) * 0.5);
  return keep.get();
}

TEST(Balance, TheBiasMakesAnUnevenRouterEven) {
  std::shared_ptr<MixtureOfExperts> keep;
  MixtureOfExperts* moe = biased(keep, 5e-3);
  const torch::NoGradGuard no_grad;
  double first = 0, last = 0;
  for (uint64_t step = 1; step <= 300; ++step) {
    Tensor x = normal({4, 256, 8}, 10, torch::kFloat);
    x.select(2, 7).fill_(1);
    const Output out =
        moe->forward(x, {.training = true, .record = true, .rng = {.seed = 1, .step = step}});
    last = out.statistics.at("moe.max_violation").item<double>();
    if (step == 1) first = last;
  }
  EXPECT_GT(first, 1);
  EXPECT_LT(last, 0.2);
  EXPECT_NEAR(moe->named_buffers()["selection_bias"].mean().item<double>(), 0, 1e-6);
}

TEST(Balance, OnlyRecordedTrainingPassesCountAndMicroBatchesAddUp) {
  std::shared_ptr<MixtureOfExperts> a, b;
  MixtureOfExperts* whole = biased(a, 1e-2);
  MixtureOfExperts* parts = biased(b, 1e-2);
  const torch::NoGradGuard no_grad;
  for (uint64_t step = 1; step <= 3; ++step) {
    const Tensor x = normal({4, 16, 8}, static_cast<uint32_t>(step), torch::kFloat);
    const Rng rng{.seed = 1, .step = step};
    whole->forward(x, {.training = true, .record = true, .rng = rng});
    for (const Tensor& half : x.chunk(2)) {
      parts->forward(half, {.training = true, .record = true, .rng = rng});
      parts->forward(half, {.training = true, .record = false, .rng = rng});  // a target's pass
      parts->forward(half, {.training = false, .record = false, .rng = {.seed = 1, .step = 0}});
    }
  }
  for (const char* name : {"selection_bias", "counts"})
    EXPECT_TRUE(torch::equal(whole->named_buffers()[name], parts->named_buffers()[name])) << name;
  EXPECT_GT(whole->named_buffers()["selection_bias"].abs().max().item<double>(), 0);
}

}  // namespace
}  // namespace sigma
