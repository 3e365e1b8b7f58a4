// Inductive moment matching: times, weights, and draws.
#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>

#include "sigma/base/error.h"
#include "sigma/generator/objectives/imm.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

Tensor times(std::vector<double> values) { return torch::tensor(values, torch::kDouble); }

Preconditioner precondition(const std::string& kind, const std::string& path = "ot_fm",
                            double t_min = 0) {
  return Preconditioner(kind, Path(PathConfig{.kind = path, .sigma_data = 0.5, .t_min = t_min}));
}

ImmConfig config_with(int64_t k, double a = 1, double b = 4) {
  ImmConfig config;
  config.k = k;
  config.a = a;
  config.b = b;
  return config;
}

Context context_for(int64_t first, int64_t count, uint64_t step = 1) {
  Context context;
  context.training = true;
  context.rng = {.seed = 3, .step = step};
  context.samples = torch::arange(first, first + count);
  return context;
}

GeneratorBatch batch_of(int64_t count, bool labels = false) {
  GeneratorBatch batch{normal({count, 2, 3, 3}, 0) * 0.5, {}};
  if (labels) batch.labels = torch::arange(count) % 5;
  return batch;
}

TEST(Imm, MappingGolden) {
  const auto r = [](const Imm& imm, std::vector<double> t, double s) {
    const Tensor s_tensor = torch::full({static_cast<int64_t>(t.size())}, s, torch::kDouble);
    return imm.map_r(times(t), s_tensor, imm.k_at(1), 0);
  };
  const Imm first(config_with(12), precondition("euler_fm"));
  EXPECT_LE(error(r(first, {.1, .5, .9, .994}, 0),
                  times({.066001165, .489679804, .899593898, .993998544})),
            5e-10);
  const Imm second(config_with(15), precondition("euler_fm", "ot_fm", .006));
  EXPECT_LE(error(r(second, {.5, .9}, .006), times({.498732907, .899949419})), 5e-10);
  const Imm third(config_with(12), precondition("simple_edm", "vp_cosine"));
  EXPECT_LE(error(r(third, {.5}, 0), times({.487388457})), 5e-10);
}

TEST(Imm, MappingStepsBackByAConstantInEta) {
  const Imm imm(config_with(12), precondition("euler_fm"));
  const Path path(PathConfig{});
  const Tensor t = torch::linspace(.1, .99, 30, torch::kDouble);
  const Tensor u = path.eta(t) - path.eta(imm.map_r(t, torch::zeros_like(t), 12, 0));
  EXPECT_LE(error(u, torch::full_like(t, .040445964)), 5e-9);
}

TEST(Imm, KGrowsLinearlyOverItsRampAndThenStays) {
  ImmConfig config = config_with(8);
  EXPECT_EQ(Imm(config, precondition("simple_edm")).k_at(0), 8);
  config.k_start = 4;
  config.k_ramp = 0.5;
  const Imm imm(config, precondition("simple_edm"));
  EXPECT_EQ(imm.k_at(0), 4);
  EXPECT_EQ(imm.k_at(0.25), 6);
  EXPECT_EQ(imm.k_at(0.5), 8);
  EXPECT_EQ(imm.k_at(1), 8);
}

TEST(Imm, DrawsFollowTheProgressOfTheTraining) {
  ImmConfig config = config_with(8);
  config.k_start = 4;
  const Imm growing(config, precondition("simple_edm"));
  const GeneratorBatch batch = batch_of(64);
  Context context = context_for(0, 64);
  for (const auto& [progress, k] : {std::pair{0.0, 4}, {1.0, 8}}) {
    context.progress = progress;
    const Draws draws = growing.draw(batch, 0, context);
    const Draws constant = Imm(config_with(k), precondition("simple_edm")).draw(batch, 0, context);
    EXPECT_TRUE(torch::equal(draws.r, constant.r)) << k;
    EXPECT_TRUE(torch::equal(draws.t, constant.t)) << k;
  }
  context.progress = 0;
  EXPECT_FALSE(
      torch::equal(growing.draw(batch, 0, context).r,
                   Imm(config_with(8), precondition("simple_edm")).draw(batch, 0, context).r));
}

TEST(Imm, WeightGolden) {
  const auto check = [](const std::string& path, double a, std::vector<double> t,
                        std::vector<double> w) {
    const Imm imm(config_with(12, a, 4), precondition("simple_edm", path));
    EXPECT_LE(error(imm.weight(times(t)), times(w)), 5e-7) << path;
  };
  check("ot_fm", 1, {.1, .5, .7, .9}, {4.910326, 3.928055, 2.454796, 1.354707});
  check("vp_cosine", 1, {.1, .5, .7, .9}, {5.803768, 2.181486, 1.754603, 1.589646});
  check("trig", 1, {.1, .5, .7, .9}, {3.552815, 1.965224, 1.513204, 1.262050});
}

TEST(Imm, WeightIsEquation13) {
  for (const double a : {0.0, 1.0, 2.0}) {
    for (const double b : {0.0, 4.0, 5.0}) {
      const Imm imm(config_with(12, a, b), precondition("simple_edm", "vp_cosine"));
      const Path path(PathConfig{.kind = "vp_cosine"});
      const Tensor t = torch::linspace(.02, .99, 20, torch::kDouble);
      const Tensor alpha = path.alpha(t);
      const Tensor expected = 0.5 * torch::sigmoid(b - path.logsnr(t)) * path.neg_logsnr_slope(t) *
                              alpha.pow(a) / (alpha.square() + path.sigma(t).square());
      EXPECT_LE(((imm.weight(t) - expected) / expected).abs().max().item<double>(), 1e-13);
      EXPECT_EQ(imm.weight(times({0})).item<double>(), 0);
    }
  }
}

TEST(Imm, KernelWeightGolden) {
  const auto w = [](const std::string& kind, double scale = 1) {
    ImmConfig config;
    config.kernel_scale = scale;
    return Imm(config, precondition(kind, "ot_fm", .006))
               .kappa(times({.3}), times({.7}), 6)
               .item<double>() *
           6;
  };
  EXPECT_NEAR(w("identity"), 1.75, 1e-14);
  EXPECT_NEAR(w("simple_edm"), 3.807887, 5e-7);
  EXPECT_NEAR(w("euler_fm"), 5, 1e-14);
  EXPECT_NEAR(w("euler_fm", 10), 50, 1e-13);
  const Imm imm({}, precondition("simple_edm"));
  const Tensor t = torch::linspace(.1, .9, 9, torch::kDouble);
  EXPECT_LE(error(imm.kappa(t * .4, t, 1) * precondition("simple_edm").out(t * .4, t).abs(),
                  torch::ones_like(t)),
            1e-14);
}

TEST(Imm, TimesAreOrderedAndInRange) {
  for (const auto& [kind, path] :
       {std::pair{"euler_fm", "ot_fm"}, {"simple_edm", "vp_cosine"}, {"simple_edm", "trig"}}) {
    for (const double t_min : {0.0, 0.006}) {
      for (const double tr_gap : {0.0, 1e-4}) {
        for (const double ts_gap : {0.0, 1e-6, 1e-2}) {
          ImmConfig config;
          config.min_ts_gap = ts_gap;
          const Preconditioner f = precondition(kind, path, t_min);
          const Imm imm(config, f);
          Tensor v1 = torch::empty({2000}, torch::kDouble);
          Tensor v2 = torch::empty({2000}, torch::kDouble);
          fill_uniform_keyed(v1, 1, 1, 0);
          fill_uniform_keyed(v2, 1, 2, 0);
          const auto [t, r, s] = imm.times(v1, v2, 12, tr_gap);
          EXPECT_TRUE((s >= t_min).all().item<bool>());
          EXPECT_TRUE((s <= r).all().item<bool>());
          EXPECT_TRUE((r < t).all().item<bool>())
              << path << " " << t_min << " " << tr_gap << " " << ts_gap;
          EXPECT_TRUE((t <= f.path().t_max()).all().item<bool>());
          EXPECT_TRUE((t - s >= ts_gap * (1 - 1e-9)).all().item<bool>());
          EXPECT_TRUE((((t - r) >= tr_gap * (1 - 1e-9)) | (r == s)).all().item<bool>());
        }
      }
    }
  }
}

TEST(Imm, TimesAreUniformInTheirIntervals) {
  ImmConfig config;
  config.min_ts_gap = 0;
  const Imm imm(config, precondition("euler_fm", "ot_fm", .006));
  const Tensor v1 = times({0.25, 0.5, 1.0});
  const Tensor v2 = times({0.5, 0.125, 0.0});
  const auto [t, r, s] = imm.times(v1, v2, 12, 0);
  EXPECT_LE(error(t, .006 + v1 * .988), 1e-15);
  EXPECT_LE(error(s, .006 + v2 * (t - .006)), 1e-15);
}

TEST(Imm, TimePowerFavoursNoiseBelowOne) {
  ImmConfig config;
  config.min_ts_gap = 0;
  config.time_power = 0.5;
  const Imm imm(config, precondition("euler_fm"));
  const auto [t, r, s] = imm.times(times({0.25, 0.81}), times({0.5, 0.5}), 12, 0);
  EXPECT_LE(error(t, times({0.5, 0.9}) * .994), 1e-15);
  EXPECT_LE(error(s, t * 0.5), 1e-15);
}

TEST(Imm, RIsNondecreasingInT) {
  for (const double gap : {0.0, 1e-4, 1e-2}) {
    for (const double s : {0.0, 0.3}) {
      const Imm imm(config_with(12), precondition("euler_fm"));
      const Tensor t = torch::linspace(s + 1e-3, .994, 500, torch::kDouble);
      const Tensor r = imm.map_r(t, torch::full_like(t, s), 12, gap);
      EXPECT_GE((r.slice(0, 1) - r.slice(0, 0, -1)).min().item<double>(), 0);
      EXPECT_TRUE((r >= s).all().item<bool>());
    }
  }
}

TEST(Imm, DrawsAreSharedWithinGroupsAndKeyedByTheSamples) {
  const Imm imm({}, precondition("simple_edm"));
  const GeneratorBatch batch = batch_of(16, true);
  const Draws whole = imm.draw(batch, 5, context_for(0, 16));
  EXPECT_EQ(whole.t.scalar_type(), torch::kDouble);
  for (const Tensor& time : {whole.t, whole.r, whole.s}) {
    ASSERT_EQ(time.sizes(), std::vector<int64_t>{16});
    const Tensor groups = time.view({4, 4});
    EXPECT_TRUE(torch::equal(groups, groups.slice(1, 0, 1).expand({4, 4})));
  }
  EXPECT_NE(whole.t[0].item<double>(), whole.t[4].item<double>());
  for (const int64_t cut : {4, 12}) {
    const Draws head = imm.draw({batch.data.slice(0, 0, cut), batch.labels.slice(0, 0, cut)}, 5,
                                context_for(0, cut));
    const Draws tail = imm.draw({batch.data.slice(0, cut), batch.labels.slice(0, cut)}, 5,
                                context_for(cut, 16 - cut));
    EXPECT_TRUE(torch::equal(torch::cat({head.t, tail.t}), whole.t));
    EXPECT_TRUE(torch::equal(torch::cat({head.r, tail.r}), whole.r));
    EXPECT_TRUE(torch::equal(torch::cat({head.s, tail.s}), whole.s));
    EXPECT_TRUE(torch::equal(torch::cat({head.eps, tail.eps}), whole.eps));
    EXPECT_TRUE(
        torch::equal(torch::cat({head.student_labels, tail.student_labels}), whole.student_labels));
  }
  EXPECT_FALSE(torch::equal(imm.draw(batch, 5, context_for(0, 16, 2)).t, whole.t));
}

TEST(Imm, NoiseIsNormalTimesSigmaData) {
  const Imm imm({}, precondition("simple_edm"));
  const Draws draws = imm.draw({torch::zeros({256, 3, 8, 8}), {}}, 0, context_for(0, 256));
  const double n = 256.0 * 192;
  EXPECT_NEAR(draws.eps.mean().item<double>(), 0, 5 * .5 / std::sqrt(n));
  EXPECT_NEAR(draws.eps.square().mean().item<double>(), .25, 5 * .25 * std::sqrt(2 / n));
  EXPECT_LT(draws.eps.min().item<double>(), -1);
}

TEST(Imm, SixteenBitPassesKeepRAwayFromT) {
  const Imm imm(config_with(16), precondition("euler_fm"));
  Context context = context_for(0, 4000);
  const GeneratorBatch batch{torch::zeros({4000, 1, 1, 1}), {}};
  const auto smallest = [&] {
    const Draws d = imm.draw(batch, 0, context);
    return torch::where(d.r > d.s, d.t - d.r, torch::ones_like(d.t)).min().item<double>();
  };
  EXPECT_LT(smallest(), 5e-5);
  context.dtype = torch::kBFloat16;
  EXPECT_GE(smallest(), 1e-4 * (1 - 1e-9));
}

TEST(Imm, LabelsAreDroppedForTheStudentAtTheConfiguredRate) {
  ImmConfig config;
  config.label_dropout = 0.25;
  const Imm imm(config, precondition("simple_edm"));
  GeneratorBatch batch{torch::zeros({4000, 1, 1, 1}), torch::arange(4000) % 5};
  const Draws draws = imm.draw(batch, 5, context_for(0, 4000));
  const Tensor dropped = draws.student_labels == 5;
  EXPECT_NEAR(dropped.sum().item<double>(), 1000, 5 * std::sqrt(4000 * .25 * .75));
  EXPECT_TRUE(torch::equal(draws.student_labels.masked_select(dropped.logical_not()),
                           batch.labels.masked_select(dropped.logical_not())));
  EXPECT_FALSE(imm.draw({batch.data, {}}, 0, context_for(0, 4000)).student_labels.defined());
}

TEST(Imm, Needs) {
  ImmConfig config;
  config.group_size = 8;
  const Imm imm(config, precondition("simple_edm"));
  EXPECT_EQ(imm.needs().group_size, 8);
  EXPECT_TRUE(imm.needs().second_time);
  EXPECT_EQ(imm.passes_per_step(), 4);
}

}  // namespace
}  // namespace sigma
