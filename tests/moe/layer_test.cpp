// The reference mixture of experts against a direct formula.
#include "sigma/moe/layer.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "sigma/base/error.h"
#include "sigma/base/random.h"
#include "sigma/nn/mlp.h"
#include "tests/testing/errors.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

Context recording() {
  Context context;
  context.training = true;
  context.record = true;
  return context;
}

struct Layer {
  MoeConfig config;
  std::shared_ptr<MixtureOfExperts> moe;

  explicit Layer(MoeConfig c, int64_t dim = 6)
      : config(c), moe(std::make_shared<MixtureOfExperts>(dim, c)) {
    initialize(*moe, 5);
    moe->to(torch::kDouble);
    torch::NoGradGuard no_grad;
    moe->named_parameters()["router"].copy_(normal({c.num_experts, dim}, 90));  // scores far apart
  }

  Tensor parameter(const std::string& name) const { return moe->named_parameters()[name]; }

  struct Direct {
    Tensor y, balance;
    std::vector<int64_t> counts;
  };

  /// Token by token, expert by expert.
  Direct direct(const Tensor& x) const {
    const int64_t E = config.num_experts;
    const int64_t K = config.num_chosen;
    const Tensor tokens = x.reshape({-1, x.size(-1)});
    const int64_t T = tokens.size(0);
    const Tensor scores = torch::softmax(tokens.matmul(parameter("router").t()), -1);
    const auto ffn = [](const Tensor& t, const Tensor& in, const Tensor& out) {
      const auto halves = in.matmul(t).chunk(2);  // gate rows first
      return out.matmul(torch::silu(halves[0]) * halves[1]);
    };
    Direct result;
    result.counts.assign(E, 0);
    std::vector<Tensor> rows;
    for (int64_t t = 0; t < T; ++t) {
      std::vector<int64_t> order(E);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        return scores[t][a].item<double>() > scores[t][b].item<double>();
      });
      Tensor y = torch::zeros({x.size(-1)}, torch::kDouble);
      if (config.num_shared > 0)
        y = y + ffn(tokens[t], parameter("shared_in.weight"), parameter("shared_out.weight"));
      for (int64_t j = 0; j < K; ++j) {
        y = y + scores[t][order[j]] *
                    ffn(tokens[t], parameter("w_in")[order[j]], parameter("w_out")[order[j]]);
        ++result.counts[order[j]];
      }
      rows.push_back(y);
    }
    result.y = torch::stack(rows).view(x.sizes());
    result.balance = torch::zeros({}, torch::kDouble);
    for (int64_t e = 0; e < E; ++e) {
      const double f = static_cast<double>(E) / static_cast<double>(K * T) *
                       static_cast<double>(result.counts[e]);
      result.balance = result.balance + f * scores.select(1, e).mean();
    }
    return result;
  }
};

MoeConfig sizes(int64_t experts, int64_t chosen, int64_t shared) {
  MoeConfig config;
  config.num_experts = experts;
  config.num_chosen = chosen;
  config.num_shared = shared;
  return config;
}

TEST(Moe, MatchesTheDirectFormula) {
  for (const auto& config :
       {sizes(8, 2, 1), sizes(5, 1, 0), sizes(4, 4, 2), sizes(1, 1, 0), sizes(7, 3, 3)}) {
    Layer layer(config);
    const Tensor x = normal({2, 5, 6}, 0);
    const auto expected = layer.direct(x);
    const Output out = layer.moe->forward(x, recording());
    EXPECT_LE(error(out.value, expected.y), 1e-14) << config.num_experts;
    EXPECT_NEAR(out.losses.at("moe.balance").item<double>(), 0.01 * expected.balance.item<double>(),
                1e-16);
  }
}

TEST(Moe, GradientsMatchTheDirectFormula) {
  Layer layer(sizes(5, 2, 1));
  const Tensor x = normal({1, 9, 6}, 0).requires_grad_();
  const Tensor g = normal({1, 9, 6}, 1);
  const auto gradients = [&](const Tensor& y, const Tensor& loss) {
    std::vector<Tensor> inputs = layer.moe->parameters();
    inputs.push_back(x);
    return torch::autograd::grad({(y * g).sum() + loss}, inputs, {}, {}, false,
                                 /*allow_unused=*/true);
  };
  const Output out = layer.moe->forward(x, recording());
  const auto actual = gradients(out.value, out.losses.at("moe.balance"));
  const auto direct = layer.direct(x);
  const auto expected = gradients(direct.y, 0.01 * direct.balance);
  for (size_t i = 0; i < actual.size(); ++i) EXPECT_LE(error(actual[i], expected[i]), 1e-13) << i;
}

TEST(Moe, BalanceLossIsOneWhenEven) {
  // Every expert gets as many tokens as any other and scores are even: sum f_i P_i = 1.
  MoeConfig config = sizes(4, 4, 0);
  config.balance.expert = 2;
  Layer layer(config);
  {
    torch::NoGradGuard no_grad;
    layer.parameter("router").zero_();
  }
  const Output out = layer.moe->forward(normal({1, 3, 6}, 0), recording());
  EXPECT_NEAR(out.losses.at("moe.balance").item<double>(), 2, 1e-14);
}

TEST(Moe, BalanceGradientReachesTheRouterOnly) {
  Layer layer(sizes(6, 2, 1));
  layer.moe->forward(normal({1, 8, 6}, 0), recording()).losses.at("moe.balance").backward();
  for (const auto& item : layer.moe->named_parameters()) {
    const Tensor grad = item.value().grad();
    const bool has = grad.defined() && grad.abs().max().item<double>() > 0;
    EXPECT_EQ(has, item.key() == "router") << item.key();
  }
}

TEST(Moe, TiesGoToTheLowerIndex) {
  Layer layer(sizes(6, 2, 0));
  {
    torch::NoGradGuard no_grad;
    layer.parameter("router").zero_();
  }
  const Tensor x = normal({1, 4, 6}, 0);
  const Output out = layer.moe->forward(x, recording());
  EXPECT_LE(error(out.value, layer.direct(x).y), 1e-15);  // a stable sort picks experts 0 and 1
  EXPECT_NEAR(out.statistics.at("moe.max_violation").item<double>(), 2, 1e-12);  // 4 / (8/6) - 1
  EXPECT_EQ(out.statistics.at("moe.empty_experts").item<double>(), 4);
}

TEST(Moe, ANanScoreIsNeverChosenBeforeANumber) {
  Layer layer(sizes(3, 1, 0));
  {
    torch::NoGradGuard no_grad;
    layer.parameter("router").fill_(0);
    layer.parameter("w_in")[0].fill_(std::nan(""));  // an expert nobody should visit
    layer.parameter("router")[2].fill_(1);
  }
  const Tensor x = torch::ones({1, 2, 6}, torch::kDouble);
  EXPECT_TRUE(layer.moe->forward(x, {}).value.isfinite().all().item<bool>());
}

TEST(Moe, OneTokenNoTokenAndEmptyExperts) {
  Layer layer(sizes(8, 2, 1));
  const Tensor one = normal({1, 1, 6}, 0);
  const Output out = layer.moe->forward(one, recording());
  EXPECT_LE(error(out.value, layer.direct(one).y), 1e-15);
  EXPECT_EQ(out.statistics.at("moe.empty_experts").item<double>(), 6);
  out.value.sum().backward();  // experts without tokens get zero or no gradient, never NaN
  const Tensor grad = layer.parameter("w_in").grad();
  EXPECT_TRUE(grad.isfinite().all().item<bool>());
  EXPECT_EQ((grad.flatten(1).abs().amax(1) > 0).sum().item<int64_t>(), 2);

  const Output none = layer.moe->forward(torch::empty({0, 4, 6}, torch::kDouble), recording());
  EXPECT_EQ(none.value.sizes(), (std::vector<int64_t>{0, 4, 6}));
  for (const auto& [name, loss] : none.losses) EXPECT_TRUE(loss.isfinite().item<bool>()) << name;
}

TEST(Moe, NonContiguousInput) {
  Layer layer(sizes(4, 2, 1));
  const Tensor x = normal({2, 6, 5}, 0).transpose(1, 2);
  EXPECT_LE(error(layer.moe->forward(x, {}).value, layer.moe->forward(x.contiguous(), {}).value),
            1e-15);
}

TEST(Moe, RecordAndNoGrad) {
  Layer layer(sizes(4, 2, 1));
  const Tensor x = normal({2, 3, 6}, 0);
  Context quiet;
  quiet.training = true;
  EXPECT_TRUE(layer.moe->forward(x, quiet).statistics.empty());
  EXPECT_FALSE(layer.moe->forward(x, recording()).statistics.empty());
  const torch::NoGradGuard no_grad;
  EXPECT_TRUE(layer.moe->forward(x, recording()).losses.empty());
}

TEST(Moe, RoutingIsFloat32WhateverTheInput) {
  Layer layer(sizes(4, 2, 0));
  layer.moe->to(torch::kFloat);
  const Tensor x = normal({1, 6, 6}, 0).to(torch::kBFloat16);
  const Output out = layer.moe->forward(x, recording());
  EXPECT_EQ(out.losses.at("moe.balance").scalar_type(), torch::kFloat);
  const auto counted = layer.moe->forward(x.to(torch::kFloat), recording());
  EXPECT_EQ(out.losses.at("moe.balance").item<float>(),
            counted.losses.at("moe.balance").item<float>());
}

TEST(Moe, SharedExpertsAreOneWideFfn) {
  MoeConfig config = sizes(4, 2, 3);
  config.expert_ratio = 0.5;
  Layer layer(config, 8);
  EXPECT_EQ(layer.parameter("w_in").sizes(), (std::vector<int64_t>{4, 8, 8}));
  EXPECT_EQ(layer.parameter("w_out").sizes(), (std::vector<int64_t>{4, 8, 4}));
  EXPECT_EQ(layer.parameter("shared_in.weight").sizes(), (std::vector<int64_t>{24, 8}));
  EXPECT_EQ(layer.parameter("shared_out.weight").sizes(), (std::vector<int64_t>{8, 12}));
}

TEST(Moe, OneExpertOfOneIsTheDenseMlp) {
  MoeConfig config = sizes(1, 1, 0);  // its softmax weight is 1
  config.expert_activation = "gelu";
  config.expert_bias = true;
  Layer layer(config);
  DenseMlp dense(6, 6, "gelu");
  initialize(dense, 7);
  dense.to(torch::kDouble);
  auto from = dense.named_parameters();
  const torch::NoGradGuard no_grad;
  layer.parameter("w_in")[0].copy_(from["fc1.weight"]);
  layer.parameter("b_in")[0].copy_(from["fc1.bias"].normal_());
  layer.parameter("w_out")[0].copy_(from["fc2.weight"]);
  layer.parameter("b_out")[0].copy_(from["fc2.bias"].normal_());
  const Tensor x = normal({2, 5, 6}, 0);
  EXPECT_LE(error(layer.moe->forward(x, {}).value, dense.forward(x, {}).value), 1e-14);
}

TEST(Moe, PermutedTokensAndExpertsGiveThePermutedResult) {
  Layer layer(sizes(6, 2, 1));
  const Tensor x = normal({1, 9, 6}, 0);
  const Tensor y = layer.moe->forward(x, {}).value;
  EXPECT_LE(error(layer.moe->forward(x.flip(1), {}).value.flip(1), y), 1e-15);
  const torch::NoGradGuard no_grad;
  for (const char* name : {"router", "w_in", "w_out"})
    layer.parameter(name).copy_(layer.parameter(name).flip(0).clone());
  EXPECT_LE(error(layer.moe->forward(x, {}).value, y), 1e-14);
}

TEST(Moe, FreedMemoryDoesNotMatter) {
  Layer layer(sizes(8, 2, 1), 16);
  layer.moe->to(torch::kFloat);
  const Tensor x = normal({2, 40, 16}, 0).to(torch::kFloat);
  const auto run = [&] {
    layer.moe->zero_grad();
    const Tensor y = layer.moe->forward(x, recording()).value;
    y.sum().backward();
    return y.detach();
  };
  const Tensor y = run(), grad = layer.parameter("w_in").grad().clone();
  {
    const Tensor poison = torch::full({1 << 18}, std::nan(""));
  }
  EXPECT_TRUE(torch::equal(run(), y));
  EXPECT_TRUE(torch::equal(layer.parameter("w_in").grad(), grad));
}

TEST(Moe, WhatDoesNotFitIsNamed) {
  const auto refused = [](const std::function<void()>& f, const std::string& part) {
    testing::expect_contains(testing::error_of(ErrorKind::kUsage, f), part);
  };
  refused([] { MixtureOfExperts(6, sizes(2, 3, 0)); }, "expected at most num_experts = 2, got 3");
  MoeConfig config = sizes(8, 2, 0);
  config.balance.devices = 3;
  refused([&] { MixtureOfExperts(6, config); }, "expected a divisor of num_experts = 8, got 3");
  config = sizes(8, 2, 0);
  config.router.kind = "expert_choice";
  config.balance.bias_rate = 1e-3;
  refused([&] { MixtureOfExperts(6, config); }, "bias_rate");
  config = sizes(8, 2, 0);
  config.expert_ratio = 0.1;
  refused([&] { MixtureOfExperts(6, config); }, "at least one channel, got 0.1 of 6");
  Layer layer(sizes(4, 2, 0));
  refused([&] { layer.moe->forward(normal({2, 3, 5}, 0), {}); },
          "expected tokens [B, N, 6], got [2, 3, 5]");
  refused([] { make_plan(torch::zeros({1}, torch::kInt64), torch::full({1}, 4), 1, 4); },
          "experts in [-1, 4), got 4");
  layer.moe->to(torch::kFloat);  // the cpu engine
  const Tensor x = normal({1, 3, 6}, 0).to(torch::kFloat).requires_grad_();
  refused(
      [&] {
        torch::autograd::grad({layer.moe->forward(x, {}).value.sum()}, {x}, {}, {},
                              /*create_graph=*/true);
      },
      "cpu has no second derivative");
}

}  // namespace
}  // namespace sigma
