#include "sigma/train/optimizer.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>

#include "sigma/base/error.h"
#include "sigma/train/ema.h"
#include "tests/testing/scratch.h"

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

TEST(LoadTensors, OneErrorListsAllAndNothingIsLoaded) {
  const Scratch scratch;
  const std::filesystem::path path = scratch.path("w.safetensors");
  write_safetensors(path,
                    {{"good", torch::ones({2})},
                     {"shape", torch::ones({2, 3})},
                     {"dtype", torch::ones({4}, torch::kHalf)},
                     {"stranger", torch::ones({1})}},
                    {});
  const SafetensorsFile file(path);
  const NamedTensors targets = {{"good", torch::zeros({2})},
                                {"shape", torch::zeros({3, 2})},
                                {"dtype", torch::zeros({4})},
                                {"absent", torch::zeros({5})}};
  const auto message = [&](bool extra) -> std::string {
    try {
      load_tensors(targets, file, extra);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kCheckpoint);
      return error.what();
    }
    return "";
  };
  for (const char* part :
       {"missing: absent", "shape of shape: expected [3,2], got [2,3]",
        "dtype of dtype: expected Float, got Half", "not in the model: stranger"})
    EXPECT_NE(message(false).find(part), std::string::npos) << message(false);
  EXPECT_EQ(message(true).find("stranger"), std::string::npos);
  EXPECT_TRUE(torch::equal(targets[0].second, torch::zeros({2})));
}

}  // namespace
}  // namespace sigma
