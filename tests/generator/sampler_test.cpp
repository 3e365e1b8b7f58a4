// Samplers, guidance and flow matching.
#include "sigma/generator/sampler.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include "sigma/base/error.h"
#include "sigma/generator/generator.h"
#include "tests/generator/toy_network.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

Tensor times(std::vector<double> values) { return torch::tensor(values, torch::kDouble); }

Path path(double t_min = 0, const std::string& kind = "ot_fm") {
  return Path(PathConfig{.kind = kind, .sigma_data = 0.5, .t_min = t_min});
}

SamplerConfig sampler(const std::string& kind, int64_t steps,
                      const std::string& schedule = "uniform") {
  SamplerConfig config;
  config.kind = kind;
  config.steps = steps;
  config.schedule = schedule;
  return config;
}

const std::vector<int64_t> kShape = {2, 3, 3};

/// sigma::sample with the noise of images `indices`.
Tensor run(const Objective& objective, const Path& p, Network& net, const SamplerConfig& config,
           const Tensor& indices, const Tensor& labels = {}) {
  Context context;
  context.samples = indices;
  return sample(objective, p, net, prior_noise(kShape, 0.5, 7, indices, torch::kCPU), {labels},
                config, context, restart_noise(kShape, 0.5, 7, indices, torch::kCPU));
}

TEST(Schedule, EdmGolden) {
  EXPECT_LE(error(times(sampler_times(sampler("pushforward", 4, "edm"), path())),
                  times({.994, .956736, .564132, .010010, 0})),
            5e-7);
  EXPECT_LE(error(times(sampler_times(sampler("pushforward", 4, "edm"), path(.006))),
                  times({.994, .973869, .848099, .290443, .006})),
            5e-7);
}

TEST(Schedule, UniformAndExplicit) {
  EXPECT_LE(error(times(sampler_times(sampler("pushforward", 2), path())), times({.994, .497, 0})),
            1e-15);
  EXPECT_LE(error(times(sampler_times(sampler("pushforward", 1), path(.006))), times({.994, .006})),
            1e-15);
  SamplerConfig config = sampler("pushforward", 2, "explicit");
  config.mid_eta = {1.4};
  EXPECT_LE(error(times(sampler_times(config, path())), times({.994, 1.4 / 2.4, 0})), 1e-15);
  config.mid_eta = {1.4, 5};  // rising
  config.steps = 3;
  EXPECT_THROW(sampler_times(config, path()), Error);
  config.mid_eta = {1000, 5};  // beyond t_max
  EXPECT_THROW(sampler_times(config, path()), Error);
  config.mid_eta = {5, 1.4};
  EXPECT_EQ(sampler_times(config, path()).size(), 4u);
}

TEST(Schedule, StrictlyFallingFromTMaxToTMin) {
  for (const char* schedule : {"uniform", "edm"}) {
    for (const char* kind : {"ot_fm", "vp_cosine", "trig"}) {
      for (const int64_t steps : {1, 2, 7, 1000}) {
        const Path p = path(.006, kind);
        const auto t = sampler_times(sampler("pushforward", steps, schedule), p);
        ASSERT_EQ(t.size(), static_cast<size_t>(steps) + 1);
        EXPECT_NEAR(t.front(), p.t_max(), 1e-15);
        EXPECT_NEAR(t.back(), .006, 1e-15);
        for (size_t i = 1; i < t.size(); ++i) EXPECT_LT(t[i], t[i - 1]);
      }
    }
  }
}

TEST(Sample, OneStepIsOneCallAndOneJump) {
  const Preconditioner f("euler_fm", path());
  const Imm imm({}, f);
  for (const char* kind : {"pushforward", "restart"}) {
    ToyNetwork net;
    const Tensor noise = prior_noise(kShape, 0.5, 7, torch::arange(3), torch::kCPU);
    const Tensor x = run(imm, f.path(), net, sampler(kind, 1), torch::arange(3));
    ASSERT_EQ(net.calls.size(), 1u);
    EXPECT_EQ(x.scalar_type(), torch::kDouble);
    EXPECT_FALSE(net.calls[0].grad);
    EXPECT_LE(error(x, noise - .994 * .5 * net.calls[0].G), 1e-15);
    EXPECT_LE(error(net.calls[0].x, noise / (.5 * std::sqrt(.006 * .006 + .994 * .994))),
              1e-14);  // not rescaled
  }
}

TEST(Sample, PushforwardIsAChainOfJumps) {
  const Preconditioner f("simple_edm", path(.006));
  const Imm imm({}, f);
  ToyNetwork net;
  const Tensor out = run(imm, f.path(), net, sampler("pushforward", 3), torch::arange(2));
  Tensor x = prior_noise(kShape, 0.5, 7, torch::arange(2), torch::kCPU);
  const auto t = sampler_times(sampler("pushforward", 3), f.path());
  for (int i = 0; i < 3; ++i) {
    x = f.apply(x, net.calls[i].G, torch::full({2}, t[i + 1], torch::kDouble),
                torch::full({2}, t[i], torch::kDouble));
  }
  EXPECT_EQ(net.calls.size(), 3u);
  EXPECT_LE(error(out, x), 1e-14);
}

TEST(Sample, RestartGoesDownAndUpAgain) {
  const Preconditioner f("simple_edm", path(.006));
  const Imm imm({}, f);
  ToyNetwork net;
  const Tensor indices = torch::arange(2);
  std::vector<Tensor> jumps;
  Context context;
  context.samples = indices;
  std::vector<Tensor> fresh;
  const FreshNoise noise = restart_noise(kShape, 0.5, 7, indices, torch::kCPU);
  const Tensor out = sample(
      imm, f.path(), net, prior_noise(kShape, 0.5, 7, indices, torch::kCPU), {},
      sampler("restart", 3), context, [&](int64_t site) { return fresh.emplace_back(noise(site)); },
      [&](const Tensor& x) { jumps.push_back(x.clone()); });
  ASSERT_EQ(fresh.size(), 2u);
  ASSERT_EQ(jumps.size(), 3u);
  EXPECT_FALSE(torch::equal(fresh[0], fresh[1]));
  EXPECT_TRUE(torch::equal(out, jumps[2]));
  const auto t = sampler_times(sampler("restart", 3), f.path());
  for (int i = 0; i < 3; ++i) EXPECT_TRUE((net.calls[i].s == .006).all().item<bool>());
  for (int i = 1; i < 3; ++i) {
    const Tensor x =
        f.path().interpolate(jumps[i - 1], fresh[i - 1], torch::full({2}, t[i], torch::kDouble));
    EXPECT_LE(error(net.calls[i].x, expand_times(f.in(net.calls[i].t), x) * x), 1e-14);
    EXPECT_NEAR(net.calls[i].t[0].item<double>(), t[i], 1e-15);
  }
}

TEST(Sample, ImagesDoNotDependOnTheBatch) {
  const Preconditioner f("simple_edm", path(.006));
  const Imm imm({}, f);
  for (const char* kind : {"pushforward", "restart"}) {
    ToyNetwork net;
    const Tensor all = run(imm, f.path(), net, sampler(kind, 3), torch::arange(6));
    for (const int64_t i : {0, 4}) {
      EXPECT_TRUE(torch::equal(run(imm, f.path(), net, sampler(kind, 3), torch::arange(i, i + 2)),
                               all.narrow(0, i, 2)))
          << kind;
    }
  }
  const Tensor noise = prior_noise(kShape, 0.5, 7, torch::arange(1000), torch::kCPU);
  EXPECT_NEAR(noise.square().mean().item<double>(), .25, 5 * .25 * std::sqrt(2 / 18000.));
  EXPECT_FALSE(torch::equal(noise, prior_noise(kShape, 0.5, 8, torch::arange(1000), torch::kCPU)));
}

TEST(Guidance, OneDoubledBatchNullFirst) {
  const Preconditioner f("euler_fm", path());
  const Imm imm({}, f);
  ToyNetwork net(4);
  const Tensor x = normal({2, 2, 3, 3}, 0);
  const Tensor t = torch::full({2}, .7, torch::kDouble);
  const Tensor s = torch::full({2}, .2, torch::kDouble);
  const Tensor labels = torch::tensor({1, 2}, torch::kInt64);
  GuidanceConfig guidance;
  guidance.scale = 1.5;
  const Tensor out = imm.jump(net, x, t, s, {labels}, guidance, {});
  ASSERT_EQ(net.calls.size(), 1u);
  EXPECT_TRUE(torch::equal(net.calls[0].labels, torch::tensor({4, 4, 1, 2}, torch::kInt64)));
  const auto G = net.calls[0].G.chunk(2);
  EXPECT_LE(error(out, x - .5 * .5 * (G[0] + 1.5 * (G[1] - G[0]))), 1e-14);

  guidance.scale = 1;
  const Tensor plain = imm.jump(net, x, t, s, {labels}, guidance, {});
  EXPECT_EQ(net.calls.back().x.size(0), 2);
  guidance = {.scale = 3, .t_lo = 0, .t_hi = .69};
  EXPECT_TRUE(torch::equal(imm.jump(net, x, t, s, {labels}, guidance, {}), plain));
  EXPECT_EQ(net.calls.back().x.size(0), 2);
  guidance = {.scale = 3, .t_lo = .7, .t_hi = .7};
  EXPECT_GT(error(imm.jump(net, x, t, s, {labels}, guidance, {}), plain), 1e-3);
}

TEST(Guidance, NeedsLabels) {
  const Imm imm({}, Preconditioner("euler_fm", path()));
  const Tensor x = normal({1, 2, 3, 3}, 0);
  GuidanceConfig guidance;
  guidance.scale = 2;
  ToyNetwork unconditional;
  ToyNetwork conditional(3);
  EXPECT_THROW(imm.jump(conditional, x, times({.7}), times({.2}), {}, guidance, {}), Error);
  EXPECT_THROW(imm.jump(unconditional, x, times({.7}), times({.2}),
                        {torch::zeros({1}, torch::kInt64)}, guidance, {}),
               Error);
}

TEST(FlowMatching, LossIsTheSquaredErrorOfTheTarget) {
  for (const auto& [kind, on] :
       {std::pair{"euler_fm", "ot_fm"}, {"simple_edm", "vp_cosine"}, {"identity", "ot_fm"}}) {
    const Preconditioner f(kind, path(0, on));
    const FlowMatching fm({}, f);
    const GeneratorBatch batch{normal({6, 2, 3, 3}, 0) * .5, torch::arange(6) % 3};
    Context context;
    context.rng = {.seed = 1, .step = 1};
    context.samples = torch::arange(6);
    const Draws draws = fm.draw(batch, 3, context);
    ToyNetwork net(3);
    const Output out = fm.loss(net, net, batch, draws, context);
    ASSERT_EQ(net.calls.size(), 1u);
    const auto& call = net.calls[0];
    EXPECT_TRUE(torch::equal(call.t, call.s));
    const Tensor x_t = f.path().interpolate(batch.data, draws.eps, draws.t);
    EXPECT_LE(error(call.x, expand_times(f.in(draws.t), x_t) * x_t), 1e-14);
    const Tensor expected =
        (call.G - f.target(batch.data, draws.eps, draws.t)).square().flatten(1).mean(1);
    EXPECT_LE(error(out.value, expected), 1e-13);
    EXPECT_NEAR(out.losses.at("flow_matching").item<double>(), expected.mean().item<double>(),
                1e-14);
  }
}

TEST(FlowMatching, TimesAndJump) {
  const Preconditioner f("euler_fm", path());
  FlowMatchingConfig config;
  Context context;
  context.rng = {.seed = 1, .step = 1};
  context.samples = torch::arange(4000);
  const GeneratorBatch batch{torch::zeros({4000, 1}), {}};
  const Tensor uniform = FlowMatching(config, f).draw(batch, 0, context).t;
  EXPECT_NEAR(uniform.mean().item<double>(), .5, .01 + 5 / std::sqrt(12 * 4000.));
  EXPECT_NEAR(uniform.var().item<double>(), 1 / 12., .002 + 5 / std::sqrt(180 * 4000.));
  config.time = "logit_normal";
  const Tensor logit = torch::logit(FlowMatching(config, f).draw(batch, 0, context).t);
  EXPECT_NEAR(logit.mean().item<double>(), 0, 5 / std::sqrt(4000.) + .02);
  EXPECT_NEAR(logit.var().item<double>(), 1, 5 * std::sqrt(2 / 4000.) + .05);

  ToyNetwork net;
  const Tensor x = normal({2, 2, 3, 3}, 0);
  const Tensor out = FlowMatching({}, f).jump(net, x, times({.7, .7}), times({.2, .2}), {}, {}, {});
  EXPECT_TRUE(torch::equal(net.calls[0].s, times({.7, .7})));  // G at (x_t, t)
  EXPECT_LE(error(out, x - .5 * .5 * net.calls[0].G), 1e-14);
  EXPECT_EQ(FlowMatching({}, f).passes_per_step(), 3);
}

TEST(MakeObjective, ChecksTheNetwork) {
  GeneratorConfig config;
  EXPECT_NE(dynamic_cast<Imm*>(make_objective(config).get()), nullptr);
  config.network.second_time = "none";
  EXPECT_THROW(make_objective(config), Error);
  config.objective.kind = "flow_matching";
  EXPECT_NE(dynamic_cast<FlowMatching*>(make_objective(config).get()), nullptr);
  config.preconditioner = "euler_fm";
  config.path.kind = "vp_cosine";
  EXPECT_THROW(make_objective(config), Error);
}

TEST(MakeObjective, TheEndOfTimeHasNoNoiseRatio) {
  GeneratorConfig config;
  config.path.t_max = 1;
  EXPECT_THROW(make_objective(config), Error);  // imm uses eta(t_max)
  config.objective.kind = "flow_matching";
  EXPECT_NO_THROW(make_objective(config));
  EXPECT_THROW(sampler_times(sampler("pushforward", 2, "edm"), Path(PathConfig{.t_max = 1})),
               Error);
  EXPECT_NO_THROW(sampler_times(sampler("pushforward", 2), Path(PathConfig{.t_max = 1})));
}

TEST(MakeObjective, IdentityWithImmNeedsTMin) {
  GeneratorConfig config;
  config.preconditioner = "identity";
  EXPECT_THROW(make_objective(config), Error);  // f_{0,t} ignores x_t
  config.path.t_min = .006;
  EXPECT_NO_THROW(make_objective(config));
}

}  // namespace
}  // namespace sigma
