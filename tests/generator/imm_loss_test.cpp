// Inductive moment matching: the loss on known outputs.
#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>

#include "sigma/base/error.h"
#include "sigma/generator/grouped_mmd.h"
#include "sigma/generator/objectives/imm.h"
#include "tests/generator/toy_network.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

Tensor times(std::vector<double> values) { return torch::tensor(values, torch::kDouble); }

Preconditioner precondition(const std::string& kind, const std::string& path = "ot_fm",
                            double t_min = 0) {
  return Preconditioner(kind, Path(PathConfig{.kind = path, .sigma_data = 0.5, .t_min = t_min}));
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

/// weight * MMD of the formulas of section 5, from raw outputs.
Tensor direct(const ImmConfig& config, const Preconditioner& f, const GeneratorBatch& batch,
              const Draws& d, const Tensor& G_t, const Tensor& G_r) {
  const Path& p = f.path();
  const int64_t M = config.group_size;
  const int64_t D = batch.data[0].numel();
  const Tensor y =
      f.apply(p.interpolate(batch.data, d.eps, d.t), G_t, d.s, d.t).reshape({-1, M, D});
  const Tensor z =
      f.apply(p.interpolate(batch.data, d.eps, d.r), G_r, d.s, d.r).reshape({-1, M, D});
  const Tensor t = d.t.view({-1, M}).select(1, 0);
  const Tensor s = d.s.view({-1, M}).select(1, 0);
  const Tensor kappa = (1 / f.out(s, t).abs() / static_cast<double>(D)).view({-1, 1, 1});
  const auto k = [&](const Tensor& a, const Tensor& b) {
    return torch::exp(-kappa * (a.unsqueeze(2) - b.unsqueeze(1)).norm(2, -1).clamp_min(1e-4))
        .mean({1, 2});
  };
  const Tensor a = p.alpha(t);
  const Tensor w = 0.5 * torch::sigmoid(config.b - p.logsnr(t)) * p.neg_logsnr_slope(t) *
                   a.pow(config.a) / (a.square() + p.sigma(t).square());
  return w * (k(y, y) + k(z, z) - 2 * k(y, z));
}

TEST(Imm, LossIsTheFormula) {
  for (const auto& [kind, path, t_min] : {std::tuple{"euler_fm", "ot_fm", 0.0},
                                          {"simple_edm", "vp_cosine", 0.006},
                                          {"identity", "ot_fm", 0.006},
                                          {"simple_edm", "trig", 0.0}}) {
    ImmConfig config;
    config.a = 2;
    const Preconditioner f = precondition(kind, path, t_min);
    const Imm imm(config, f);
    const GeneratorBatch batch = batch_of(8, true);
    const Draws draws = imm.draw(batch, 5, context_for(0, 8));
    ToyNetwork student(5);
    ToyNetwork target(5);
    const Output out = imm.loss(student, target, batch, draws, context_for(0, 8));
    ASSERT_EQ(student.calls.size(), 1u);  // one call for all groups
    ASSERT_EQ(target.calls.size(), 1u);
    const Tensor per_group = direct(config, f, batch, draws, student.calls[0].G, target.calls[0].G);
    EXPECT_LE(error(out.value, per_group), 1e-13);
    ASSERT_EQ(out.losses.size(), 1u);
    EXPECT_NEAR(out.losses.at("imm").item<double>(), per_group.mean().item<double>(), 1e-13);

    const auto& s = student.calls[0];
    const auto& z = target.calls[0];
    EXPECT_TRUE(torch::equal(s.t, draws.t) && torch::equal(s.s, draws.s));
    EXPECT_TRUE(torch::equal(z.t, draws.r) && torch::equal(z.s, draws.s));
    EXPECT_TRUE(torch::equal(s.labels, draws.student_labels));
    EXPECT_TRUE(torch::equal(z.labels, batch.labels));                        // undropped
    const Tensor x_r = f.path().interpolate(batch.data, draws.eps, draws.r);  // the same (x, eps)
    EXPECT_LE(error(z.x, expand_times(f.in(draws.r), x_r) * x_r), 1e-15);
  }
}

TEST(Imm, TheTargetIsNotRecordedAndInFloat32) {
  const Imm imm({}, precondition("simple_edm"));
  const GeneratorBatch batch = batch_of(4);
  Context context = context_for(0, 4);
  context.record = true;
  context.dtype = torch::kBFloat16;
  ToyNetwork net;
  const Output out = imm.loss(net, net, batch, imm.draw(batch, 0, context), context);
  ASSERT_EQ(net.calls.size(), 2u);
  EXPECT_TRUE(net.calls[0].grad && net.calls[0].context.record);
  EXPECT_EQ(net.calls[0].context.dtype, torch::kBFloat16);
  EXPECT_FALSE(net.calls[1].grad || net.calls[1].context.record);
  EXPECT_EQ(net.calls[1].context.dtype, torch::kFloat);
  EXPECT_FALSE(out.statistics.empty());
  context.record = false;
  EXPECT_TRUE(imm.loss(net, net, batch, imm.draw(batch, 0, context), context).statistics.empty());
}

TEST(Imm, EqualTimesRAndSGiveTheSampleItself) {
  const Preconditioner f = precondition("simple_edm", "ot_fm", .006);
  const Imm imm({}, f);
  const GeneratorBatch batch = batch_of(4);
  Draws draws = imm.draw(batch, 0, context_for(0, 4));
  draws.r = draws.s;
  ToyNetwork student;
  ToyNetwork target;
  const Output out = imm.loss(student, target, batch, draws, context_for(0, 4));
  const Tensor x_s = f.path().interpolate(batch.data, draws.eps, draws.s).reshape({1, 4, -1});
  const Tensor x_t = f.path().interpolate(batch.data, draws.eps, draws.t);
  const Tensor y = f.apply(x_t, student.calls[0].G, draws.s, draws.t).reshape({1, 4, -1});
  const Tensor t = draws.t.slice(0, 0, 1);
  const Tensor expected =
      imm.weight(t) *
      grouped_mmd(y, x_s, imm.kappa(draws.s.slice(0, 0, 1), t, 18), "laplace", 1e-4).mmd;
  EXPECT_TRUE(torch::equal(out.value, expected));
}

TEST(Imm, AnySplitAtGroupBordersGivesTheSameLoss) {
  const Imm imm({}, precondition("simple_edm"));
  const GeneratorBatch batch = batch_of(16);
  ToyNetwork net;
  const auto loss = [&](int64_t first, int64_t count) {
    const GeneratorBatch part{batch.data.narrow(0, first, count), {}};
    const Context context = context_for(first, count);
    return imm.loss(net, net, part, imm.draw(part, 0, context), context)
        .losses.at("imm")
        .item<double>();
  };
  const double whole = loss(0, 16);
  EXPECT_NEAR(loss(0, 4) * .25 + loss(4, 12) * .75, whole, 1e-14);
  EXPECT_NEAR((loss(0, 4) + loss(4, 4) + loss(8, 4) + loss(12, 4)) / 4, whole, 1e-14);
}

TEST(Imm, GradientMatchesFiniteDifferences) {
  NetworkConfig network;
  network.num_classes = 3;
  network.trunk.hidden_size = 16;
  network.trunk.depth = 1;
  network.trunk.num_heads = 2;
  for (const char* kernel : {"laplace", "rbf"}) {
    DiffusionTransformer student(network, {2, 4, 4});
    DiffusionTransformer target(network, {2, 4, 4});
    initialize(student, 1);
    initialize(target, 1);
    student.to(torch::kDouble);
    target.to(torch::kDouble);
    uint32_t site = 900;
    {
      torch::NoGradGuard no_grad;
      for (auto& p : student.parameters()) p.add_(normal(p.sizes(), ++site) * 0.2);
      for (auto& p : target.parameters()) p.add_(normal(p.sizes(), ++site) * 0.2);
    }
    ImmConfig config;
    config.kernel = kernel;
    const Imm imm(config, precondition("simple_edm"));
    GeneratorBatch batch{normal({8, 2, 4, 4}, 0) * .5, torch::arange(8) % 3};
    const Draws draws = imm.draw(batch, 3, context_for(0, 8));
    const auto loss = [&] {
      return imm.loss(student, target, batch, draws, context_for(0, 8)).losses.at("imm");
    };
    loss().backward();
    for (const auto& p : target.parameters()) EXPECT_FALSE(p.grad().defined());
    for (const auto& item : student.named_parameters()) {
      ASSERT_TRUE(item.value().grad().defined()) << item.key();
      torch::NoGradGuard no_grad;
      Tensor p = item.value();
      const Tensor d = normal(p.sizes(), ++site);
      constexpr double kStep = 1e-5;
      p.add_(d, kStep);
      const double up = loss().item<double>();
      p.add_(d, -2 * kStep);
      const double down = loss().item<double>();
      p.add_(d, kStep);
      const double exact = (p.grad() * d).sum().item<double>();
      EXPECT_NEAR((up - down) / (2 * kStep), exact, 1e-9 + 1e-6 * std::abs(exact)) << item.key();
    }
  }
}

TEST(Imm, FiniteAtTheStartAndAtTheEndsOfTime) {
  NetworkConfig network;
  network.trunk.hidden_size = 16;
  network.trunk.depth = 1;
  network.trunk.num_heads = 2;
  DiffusionTransformer net(network, {1, 4, 4});
  initialize(net, 1);  // G = 0
  for (const auto& [kind, t_min] :
       {std::pair{"euler_fm", 0.0}, {"simple_edm", 0.0}, {"identity", 0.006}}) {
    const Preconditioner f = precondition(kind, "ot_fm", t_min);
    const Imm imm({}, f);
    const GeneratorBatch batch{normal({16, 1, 4, 4}, 0).to(torch::kFloat) * .5f, {}};
    Draws draws = imm.draw(batch, 0, context_for(0, 16));
    const auto [t, r, s] = imm.times(times({1e-10, 1e-10, 1 - 1e-10, 1 - 1e-10}),
                                     times({1e-10, 1 - 1e-10, 1e-10, 1 - 1e-10}), 12, 0);
    draws.t = t.repeat_interleave(4);
    draws.r = r.repeat_interleave(4);
    draws.s = s.repeat_interleave(4);
    const Output out = imm.loss(net, net, batch, draws, context_for(0, 16));
    EXPECT_TRUE(out.value.isfinite().all().item<bool>()) << kind << out.value;
    out.losses.at("imm").backward();
    for (const auto& p : net.parameters()) {
      if (p.grad().defined()) EXPECT_TRUE(p.grad().isfinite().all().item<bool>()) << kind;
    }
  }
}

TEST(Imm, NonFiniteDataGivesANonFiniteLoss) {
  const Imm imm({}, precondition("simple_edm"));
  GeneratorBatch batch = batch_of(4);
  batch.data[0][0][0][0] = std::nan("");
  ToyNetwork net;
  EXPECT_FALSE(imm.loss(net, net, batch, imm.draw(batch, 0, context_for(0, 4)), context_for(0, 4))
                   .losses.at("imm")
                   .isfinite()
                   .item<bool>());
}

}  // namespace
}  // namespace sigma
