// Bottlenecks: gradients and noise against plain formulas.
#include "sigma/tokenizer/bottleneck.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cmath>
#include <limits>

#include "tests/testing/errors.h"
#include "tests/testing/numbers.h"
#include "tests/tokenizer/small_bottleneck.h"

namespace sigma {
namespace {

using testing::error_of;
using testing::expect_contains;
using torch::Tensor;

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

}  // namespace
}  // namespace sigma
