#include "sigma/train/optimizer.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>

#include "sigma/train/ema.h"

namespace sigma {
namespace {

using torch::Tensor;

// objectives.md, section 12: p = 1, gradients cos(1)..cos(8), lr 0.1.
double eight_steps(double weight_decay) {
  Tensor p = torch::ones({1}, torch::kDouble).requires_grad_();
  AdamW optimizer({{"p", p}}, {.lr = 0.1, .weight_decay = weight_decay});
  for (int i = 1; i <= 8; ++i) {
    p.mutable_grad() = torch::full({1}, std::cos(i), torch::kDouble);
    optimizer.step(0.1, torch::zeros({}));
  }
  return p.item<double>();
}

TEST(AdamW, MatchesTheGoldenValues) {
  EXPECT_NEAR(eight_steps(0), 1.01045783196, 1e-11);
  EXPECT_NEAR(eight_steps(0.1), 0.93452813125, 1e-11);
}

TEST(AdamW, ANonFiniteStepChangesNothing) {
  Tensor p = torch::ones({3}).requires_grad_();
  AdamW optimizer({{"p", p}}, {});
  p.mutable_grad() = torch::tensor({1.0f, 2.0f, 3.0f});
  optimizer.step(0.1, torch::zeros({}));
  const Tensor before = p.detach().clone();
  std::vector<Tensor> state;
  for (const auto& [name, tensor] : optimizer.state()) state.push_back(tensor.clone());
  p.mutable_grad() = torch::full({3}, std::nanf(""));
  optimizer.step(0.1, torch::ones({}));
  EXPECT_TRUE(torch::equal(p.detach(), before));
  for (size_t i = 0; i < state.size(); ++i) {
    EXPECT_TRUE(torch::equal(optimizer.state()[i].second, state[i])) << optimizer.state()[i].first;
  }
}

TEST(Schedule, WarmsUpHoldsAndFalls) {
  const ScheduleConfig cosine{
      .kind = "cosine", .warmup_steps = 10, .decay_from = 0.5, .final = 0.1};
  EXPECT_DOUBLE_EQ(learning_rate(cosine, 2, 5, 100), 1);
  EXPECT_DOUBLE_EQ(learning_rate(cosine, 2, 50, 100), 2);
  EXPECT_NEAR(learning_rate(cosine, 2, 75, 100), 2 * 0.55, 1e-12);
  EXPECT_NEAR(learning_rate(cosine, 2, 100, 100), 0.2, 1e-12);
}

}  // namespace
}  // namespace sigma
