// Paths and preconditioners: the numbers of the specification, and identities.
#include "sigma/generator/path.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>
#include <limits>

#include "sigma/base/error.h"
#include "sigma/generator/preconditioner.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

Tensor times(std::vector<double> values) { return torch::tensor(values, torch::kDouble); }
double at(const Tensor& x) { return x.item<double>(); }

Path path(const std::string& kind, double t_min = 0, double t_max = 0, double sigma_data = 0.5) {
  return Path(PathConfig{.kind = kind, .sigma_data = sigma_data, .t_min = t_min, .t_max = t_max});
}

const std::vector<std::string> kPaths = {"ot_fm", "vp_cosine", "trig"};
const std::vector<std::pair<std::string, std::string>> kPairs = {
    {"identity", "ot_fm"},   {"identity", "vp_cosine"}, {"identity", "trig"},
    {"simple_edm", "ot_fm"}, {"simple_edm", "trig"},    {"simple_edm", "vp_cosine"},
    {"euler_fm", "ot_fm"}};

TEST(Path, Golden) {
  const auto check = [](const Path& p, double t, double logsnr, double slope) {
    EXPECT_NEAR(at(p.logsnr(times({t}))), logsnr, 5e-7);
    EXPECT_NEAR(at(p.neg_logsnr_slope(times({t}))), slope, 5e-7);
  };
  check(path("ot_fm"), .1, 4.394449, 22.222222);
  check(path("ot_fm"), .5, 0, 8);
  check(path("ot_fm"), .9, -4.394449, 22.222222);
  check(path("vp_cosine"), .1, 3.685460, 20.332815);
  check(path("vp_cosine"), .5, 0, 6.283185);
  check(path("vp_cosine"), .9, -3.685460, 20.332815);
  check(path("trig"), .5, 1.209165, 4.753580);
}

TEST(Path, TableOfTheSpecification) {
  for (const double t : {0.013, 0.3, 0.77, 0.99}) {
    const Tensor T = times({t});
    const double half_pi = M_PI / 2;
    EXPECT_NEAR(at(path("ot_fm").alpha(T)), 1 - t, 1e-16);
    EXPECT_NEAR(at(path("ot_fm").sigma(T)), t, 1e-16);
    EXPECT_NEAR(at(path("vp_cosine").alpha(T)), std::cos(half_pi * t), 2e-16);
    EXPECT_NEAR(at(path("vp_cosine").sigma(T)), std::sin(half_pi * t), 2e-16);
    EXPECT_NEAR(at(path("trig").alpha(T)), std::cos(t), 2e-16);
    EXPECT_NEAR(at(path("trig").sigma(T)), std::sin(t), 2e-16);
    EXPECT_NEAR(at(path("ot_fm").eta(T)), t / (1 - t), 1e-13);
    EXPECT_NEAR(at(path("vp_cosine").eta(T)), std::tan(half_pi * t), 1e-12);
    EXPECT_NEAR(at(path("trig").eta(T)), std::tan(t), 1e-14);
  }
  EXPECT_EQ(path("ot_fm").slope_constant(), 2);
  EXPECT_EQ(path("vp_cosine").slope_constant(), M_PI);
  EXPECT_EQ(path("trig").slope_constant(), 2);
}

TEST(Path, DefaultEndsAreAboutEdmsLargestNoise) {
  const auto check = [](const std::string& kind, double t_max, double noise) {
    const Path p = path(kind);
    EXPECT_NEAR(p.t_max(), t_max, 1e-15);
    EXPECT_NEAR(0.5 * p.eta(p.t_max()), noise, 0.05);
  };
  check("ot_fm", 0.994, 82.8);
  check("vp_cosine", 0.996, 79.6);
  check("trig", std::atan(160.0), 80.0);
}

TEST(Path, EtaInverseAndSlope) {
  for (const auto& kind : kPaths) {
    const Path p = path(kind);
    const Tensor t = torch::linspace(0.01, 0.95 * p.range_end(), 40, torch::kDouble);
    EXPECT_LE(error(p.eta_inverse(p.eta(t)), t), 1e-14);
    for (const double x : {0.1, 0.6}) {
      EXPECT_EQ(p.eta(x), at(p.eta(times({x}))));
      EXPECT_EQ(p.eta_inverse(x), at(p.eta_inverse(times({x}))));
    }
    constexpr double kStep =
        1e-6;  // central differences: truncation 1e-12 f''' / 6, rounding 1e-16 / 1e-6
    const Tensor numeric = (p.logsnr(t - kStep) - p.logsnr(t + kStep)) / (2 * kStep);
    const Tensor slope = p.neg_logsnr_slope(t);
    EXPECT_LE(((numeric - slope) / slope).abs().max().item<double>(), 1e-7);
    EXPECT_LE(error(slope * p.alpha(t) * p.sigma(t), torch::full_like(t, p.slope_constant())),
              1e-14);
    EXPECT_EQ(at(p.logsnr(times({0}))), kInfinity);
  }
}

TEST(Path, DdimOfTheKnownPairIsInterpolation) {
  for (const auto& kind : kPaths) {
    const Path p = path(kind);
    const Tensor x = normal({6, 2, 3}, 0);
    const Tensor eps = normal({6, 2, 3}, 1) * 0.5;
    const Tensor t = times({.2, .5, .7, .9, .95, .99}) * p.range_end();
    const Tensor r = t * 0.6;
    const Tensor s = t * times({0, .1, .2, .3, .4, .5});
    const Tensor x_t = p.interpolate(x, eps, t);
    EXPECT_LE(error(p.ddim(x_t, x, s, t), p.interpolate(x, eps, s)), 1e-14);
    EXPECT_LE(error(p.ddim(p.ddim(x_t, x, r, t), x, s, r), p.ddim(x_t, x, s, t)), 1e-14);
    EXPECT_TRUE(torch::equal(p.interpolate(x, eps, torch::zeros({6}, torch::kDouble)), x));
    EXPECT_EQ(p.interpolate(x.to(torch::kFloat), eps.to(torch::kFloat), t).scalar_type(),
              torch::kDouble);
  }
}

TEST(Path, TimesOutsideTheRangeAreNamed) {
  const Path p = path("ot_fm");
  const Tensor x = normal({2, 3}, 0);
  for (const double bad : {-0.01, 1.25}) {
    try {
      p.interpolate(x, x, times({0.5, bad}));
      FAIL() << bad;
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::kUsage);
      EXPECT_NE(std::string(e.what()).find(bad < 0 ? "-0.01" : "1.25"), std::string::npos)
          << e.what();
    }
  }
  EXPECT_NO_THROW(path("trig").interpolate(x, x, times({0.5, 1.5})));
  EXPECT_THROW(p.interpolate(x, x, times({0.5, std::nan("")})), Error);
  EXPECT_THROW(path("ot_fm", 0.05, 0.04), Error);
  EXPECT_THROW(path("ot_fm", 0, 1.1), Error);
  EXPECT_NO_THROW(path("ot_fm", 0, 1.0));
  EXPECT_THROW(path("vp"), Error);
}

TEST(Preconditioner, Golden) {
  const auto check = [](const std::string& kind, const std::string& on, double skip, double out) {
    const Preconditioner f(kind, path(on));
    EXPECT_NEAR(at(f.skip(times({.3}), times({.7}))), skip, 5e-7);
    EXPECT_NEAR(at(f.out(times({.3}), times({.7}))), out, 5e-7);
  };
  check("identity", "ot_fm", .428571, .571429);
  check("simple_edm", "ot_fm", .724138, -.262613);
  check("euler_fm", "ot_fm", 1, -.2);
  check("identity", "vp_cosine", .509525, .659687);
  check("simple_edm", "vp_cosine", .809017, -.293893);
  EXPECT_NEAR(at(Preconditioner("simple_edm", path("ot_fm")).in(times({.7}))), 2.626129, 5e-7);
}

TEST(Preconditioner, TheTargetGivesTheExactJump) {
  for (const auto& [kind, on] : kPairs) {
    for (const double sigma_data : {0.5, 1.0}) {
      const Preconditioner f(kind, path(on, 0, 0, sigma_data));
      const Path& p = f.path();
      const Tensor x = normal({5, 2, 3}, 0);
      const Tensor eps = normal({5, 2, 3}, 1) * sigma_data;
      const Tensor t = times({.1, .4, .7, .9, .98}) * p.range_end();
      const Tensor s = t * times({0, .3, .5, .9, .999});
      const Tensor x_t = p.interpolate(x, eps, t);
      const Tensor y = f.apply(x_t, f.target(x, eps, t), s, t);
      EXPECT_LE(error(y, p.interpolate(x, eps, s)), 4e-15) << kind << " " << on;
    }
  }
}

TEST(Preconditioner, JumpsComposeForPointMassData) {
  for (const auto& [kind, on] : kPairs) {
    const Preconditioner f(kind, path(on));
    const Tensor x = torch::full({4, 3}, 0.3, torch::kDouble);
    const Tensor eps = normal({4, 3}, 1);
    const Tensor t = times({.3, .6, .9, .95}) * f.path().range_end();
    const Tensor r = t * 0.7;
    const Tensor s = t * 0.2;
    const auto jump = [&](const Tensor& x_t, const Tensor& to, const Tensor& from) {
      const Tensor known = (x_t - expand_times(f.path().alpha(from), x_t) * x) /
                           expand_times(f.path().sigma(from), x_t);
      return f.apply(x_t, f.target(x, known, from), to, from);
    };
    const Tensor x_t = f.path().interpolate(x, eps, t);
    EXPECT_LE(error(jump(jump(x_t, r, t), s, r), jump(x_t, s, t)), 1e-14) << kind << " " << on;
  }
}

TEST(Preconditioner, AJumpNowhereIsTheIdentityBitForBit) {
  for (const auto& [kind, on] : kPairs) {
    const Preconditioner f(kind, path(on));
    const Tensor t = times({1e-7, .0123, .3, .777, .99}) * f.path().range_end();
    const Tensor x = normal({5, 7}, 0);
    const Tensor G = normal({5, 7}, 1) * 1e6;
    EXPECT_TRUE(torch::equal(f.apply(x, G, t, t), x)) << kind << " " << on;
  }
}

TEST(Preconditioner, InputHasUnitVarianceAndOutputScalesWithSigmaData) {
  for (const auto& [kind, on] : kPairs) {
    const Preconditioner f(kind, path(on));
    const Tensor t = times({.1, .5, .9});
    const Tensor variance = (f.path().alpha(t).square() + f.path().sigma(t).square()) * 0.25;
    EXPECT_LE(error(f.in(t).square() * variance, torch::ones({3}, torch::kDouble)), 1e-14);
    if (kind == "identity") continue;
    const Preconditioner doubled(kind, path(on, 0, 0, 1.0));
    EXPECT_LE(error(doubled.out(t * 0.3, t), 2 * f.out(t * 0.3, t)), 1e-15);
    EXPECT_LT(f.out(t * 0.3, t).max().item<double>(), 0);
  }
}

TEST(Preconditioner, SimpleEdmIsEdmAtZero) {
  // EDM's D(y; sigma) with y = x_t / alpha, sigma = sd eta, F = -G.
  const Preconditioner f("simple_edm", path("ot_fm"));
  const Tensor t = times({.2, .6, .95});
  const Tensor x_t = normal({3, 4}, 0);
  const Tensor G = normal({3, 4}, 1);
  const Tensor noise = expand_times(0.5 * f.path().eta(t), x_t);
  const Tensor y = x_t / expand_times(f.path().alpha(t), x_t);
  const Tensor total = noise.square() + 0.25;
  const Tensor D = 0.25 / total * y + noise * 0.5 / total.sqrt() * -G;
  EXPECT_LE(error(f.apply(x_t, G, torch::zeros({3}, torch::kDouble), t), D), 1e-14);
}

TEST(Preconditioner, Errors) {
  EXPECT_THROW(Preconditioner("euler_fm", path("vp_cosine")), Error);
  EXPECT_THROW(Preconditioner("euler_fm", path("trig")), Error);
  EXPECT_THROW(Preconditioner("edm", path("ot_fm")), Error);
}

}  // namespace
}  // namespace sigma
