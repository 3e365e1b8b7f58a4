// Initial weights: a function of the seed and the parameters' names alone.
#include "sigma/nn/module.h"

#include <gtest/gtest.h>
#include <torch/nn/modules/linear.h>

#include <cmath>

#include "sigma/base/error.h"
#include "sigma/base/random.h"
#include "sigma/base/sha256.h"
#include "sigma/nn/linear.h"

namespace sigma {
namespace {

using torch::Tensor;

struct Pair : Module {
  explicit Pair(bool a_first, bool extra = false) {
    if (a_first) child<Linear>("a", 6, 4);
    child<Linear>("b", 6, 4);
    if (extra) child<Linear>("other", 50, 50);
    if (!a_first) child<Linear>("a", 6, 4);
  }
};

struct Rules : Module {
  Rules() {
    parameter("zero", {5}, Init::zero());
    parameter("one", {5}, Init::one());
    parameter("normal", {200, 300}, Init::normal(0.02));
    parameter("uniform", {200, 300}, Init::uniform(0.25));
    parameter("xavier", {200, 100}, Init::xavier());
  }
};

TEST(Initialize, IndependentOfOrderAndOfOtherModules) {
  Pair first(true);
  Pair second(false, true);
  initialize(first, 7);
  initialize(second, 7);
  const auto named = second.named_parameters();
  for (const auto& item : first.named_parameters()) {
    EXPECT_TRUE(torch::equal(item.value(), named[item.key()])) << item.key();
  }
  EXPECT_FALSE(torch::equal(named["a.weight"], named["b.weight"]));
  initialize(second, 8);
  EXPECT_FALSE(torch::equal(first.named_parameters()["a.weight"], named["a.weight"]));
}

TEST(Initialize, KeyedByTheFullName) {
  struct Root : Module {
    Root() { child<Rules>("deep"); }
  } root;
  initialize(root, 3);
  Tensor expected = torch::empty({200, 300});
  fill_normal_keyed(expected, 3, random_stream(Purpose::kInit, 0), sha256_u64("deep.normal"));
  EXPECT_TRUE(torch::equal(root.named_parameters()["deep.normal"], expected * 0.02));
}

TEST(Initialize, RulesHoldTheirMoments) {
  Rules rules;
  initialize(rules, 1);
  auto named = rules.named_parameters();
  EXPECT_TRUE((named["zero"] == 0).all().item<bool>());
  EXPECT_TRUE((named["one"] == 1).all().item<bool>());
  const double n = 60000;
  EXPECT_NEAR(named["normal"].mean().item<double>(), 0, 5 * 0.02 / std::sqrt(n));
  EXPECT_NEAR(named["normal"].to(torch::kDouble).square().mean().item<double>(), 4e-4,
              5 * 4e-4 * std::sqrt(2 / n));
  const auto expect_uniform = [](const Tensor& x, double half) {
    const double count = static_cast<double>(x.numel());
    const double largest = x.abs().max().item<double>();
    EXPECT_LE(largest, half * (1 + 1e-6));
    EXPECT_GE(largest, half * 0.999);
    EXPECT_NEAR(x.mean().item<double>(), 0, 5 * half / std::sqrt(3 * count));
    EXPECT_NEAR(x.to(torch::kDouble).square().mean().item<double>(), half * half / 3,
                5 * half * half * std::sqrt(4.0 / 45 / count));
  };
  expect_uniform(named["uniform"], 0.25);
  expect_uniform(named["xavier"], std::sqrt(6.0 / 300));
}

TEST(Initialize, AParameterWithoutARuleIsAnError) {
  struct Plain : Module {
    Plain() { register_parameter("w", torch::empty({2})); }
  } plain;
  try {
    initialize(plain, 0);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kFailure);
    EXPECT_NE(std::string(error.what()).find("w"), std::string::npos);
  }
  struct Holder : Module {
    Holder() { register_module("lin", std::make_shared<torch::nn::LinearImpl>(2, 2)); }
  } holder;
  EXPECT_THROW(initialize(holder, 0), Error);
}

TEST(Initialize, ParametersStayLeavesThatRequireGradients) {
  Pair pair(true);
  initialize(pair, 1);
  for (const auto& p : pair.parameters()) {
    EXPECT_TRUE(p.requires_grad() && p.is_leaf());
    EXPECT_EQ(p.scalar_type(), torch::kFloat);
  }
}

}  // namespace
}  // namespace sigma
