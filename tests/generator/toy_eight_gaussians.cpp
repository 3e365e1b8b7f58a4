// The toy gate: IMM on eight Gaussians must give good one-step samples, and what is known to break
// it must fail the same gate.
//
//   toy_eight_gaussians               IMM: exit 0 if it passes the gate
//   toy_eight_gaussians --ablations   flow matching at one step, an EMA target, dropped diagonals:
//   exit 0 if all fail it
//
// 8 Gaussians on a circle of radius .69, standard deviation .05; a small MLP; Adam 1e-3, 512
// samples a step, 1500 steps; EMA min(.999, (1+i)/(10+i)); 5000 samples. hq is the share of samples
// within 3 standard deviations of a mode.
#include <fmt/format.h>
#include <torch/optim/adam.h>
#include <torch/utils.h>

#include <chrono>
#include <cstring>
#include <memory>

#include "sigma/base/random.h"
#include "sigma/generator/generator.h"
#include "sigma/trunk/positions.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr double kRadius = 0.69;
constexpr double kModeStd = 0.05;
constexpr int64_t kModes = 8;
constexpr int64_t kBatch = 512;
constexpr int64_t kSteps = 1500;
constexpr int64_t kSamples = 5000;
constexpr int64_t kGroup = 4;
constexpr int64_t kHidden = 128;
constexpr int64_t kEmbedding = 64;

Tensor mode_centres() {
  const Tensor angle = torch::arange(kModes, torch::kDouble) * (2 * M_PI / kModes);
  return kRadius * torch::stack({angle.cos(), angle.sin()}, 1);
}

/// Samples `indices` of the data set, [B, 2] float32.
Tensor data(const Tensor& indices, const Rng& rng, Purpose purpose) {
  Tensor noise = torch::empty({indices.size(0), 2}, torch::kDouble);
  fill_normal(noise, rng, purpose, 0, indices);
  const Tensor mode = uniform_int(kModes, rng, purpose, 1, indices);
  return (mode_centres().index_select(0, mode) + kModeStd * noise).to(torch::kFloat);
}

/// e = silu(Lt(emb t) + Ls(emb s));  three blocks h += B silu(A h + C e).
class ToyMlp : public Network {
 public:
  ToyMlp() {
    const auto linear = [&](const std::string& name, int64_t in, int64_t out) {
      return child<Linear>(name, in, out, true,
                           Init::uniform(1 / std::sqrt(static_cast<double>(in))));
    };
    in_ = linear("in", 2, kHidden);
    t_ = linear("t", kEmbedding, kHidden);
    s_ = linear("s", kEmbedding, kHidden);
    for (int i = 0; i < 3; ++i) {
      blocks_.push_back({linear(fmt::format("a{}", i), kHidden, kHidden),
                         linear(fmt::format("b{}", i), kHidden, kHidden),
                         linear(fmt::format("c{}", i), kHidden, kHidden)});
    }
    out_ = linear("out", kHidden, 2);
  }

  Output forward(const Tensor& x, const Tensor& t, const Tensor& s, const Condition&,
                 const Context&) override {
    const auto embed = [](const Tensor& v) {
      return time_features(1000 * v, kEmbedding / 2).to(torch::kFloat);
    };
    const Tensor e = torch::silu(t_->forward(embed(t)) + s_->forward(embed(s)));
    Tensor h = in_->forward(x);
    for (const auto& block : blocks_)
      h = h + block.b->forward(torch::silu(block.a->forward(h) + block.c->forward(e)));
    return {.value = out_->forward(h), .losses = {}, .statistics = {}};
  }
  int64_t num_classes() const override { return 0; }
  double flops() const override { return 0; }

 private:
  struct Layers {
    std::shared_ptr<Linear> a, b, c;
  };
  std::shared_ptr<Linear> in_, t_, s_, out_;
  std::vector<Layers> blocks_;
};

/// 2 E|x-y| - E|x-x'| - E|y-y'|, without equal pairs.
double energy(const Tensor& x, const Tensor& y) {
  const auto n = static_cast<double>(x.size(0));
  const auto mean = [](const Tensor& a, const Tensor& b) {
    double sum = 0;
    for (const Tensor& rows : a.split(500))
      sum += torch::cdist(rows, b, 2, /*compute_mode=*/2).sum().item<double>();
    return sum / static_cast<double>(a.size(0) * b.size(0));
  };
  return 2 * mean(x, y) - (mean(x, x) + mean(y, y)) * n / (n - 1);
}

struct Quality {
  double energy = 0, hq = 0, smallest_mode = 0;
};

Quality judge(const Tensor& samples, const Tensor& reference) {
  const Tensor distance = torch::cdist(samples, mode_centres());
  const auto [nearest, mode] = distance.min(1);
  Quality q;
  q.energy = energy(samples, reference);
  q.hq = (nearest <= 3 * kModeStd).to(torch::kDouble).mean().item<double>();
  q.smallest_mode =
      torch::bincount(mode, {}, kModes).min().item<double>() / static_cast<double>(samples.size(0));
  return q;
}

/// IMM's loss from the public pieces, with the pairs j = k of yy and zz left out.
Tensor loss_without_diagonals(const Imm& imm, const Preconditioner& f, Network& net,
                              const GeneratorBatch& batch, const Draws& d, const Context& context) {
  const auto jump = [&](const Tensor& from) {
    const Tensor x = f.path().interpolate(batch.data, d.eps, from);
    return f.apply(x, raw_output(net, f, x, from, d.s, {}, context).value, d.s, from)
        .view({-1, kGroup, 2});
  };
  const Tensor y = jump(d.t);
  Tensor z;
  {
    const torch::NoGradGuard no_grad;
    z = jump(d.r);
  }
  const Tensor t = d.t.view({-1, kGroup}).select(1, 0);
  const Tensor kappa = imm.kappa(d.s.view({-1, kGroup}).select(1, 0), t, 2).view({-1, 1, 1});
  const auto kernel = [&](const Tensor& a, const Tensor& b) {
    const Tensor square = (a.unsqueeze(2) - b.unsqueeze(1)).square().sum(-1);
    return torch::exp(-kappa * square.clamp_min(1e-8).sqrt());
  };
  const Tensor others = 1 - torch::eye(kGroup, torch::kDouble);
  const double pairs = kGroup * (kGroup - 1);
  const Tensor mmd =
      ((kernel(y, y) + kernel(z, z)) * others).sum({1, 2}) / pairs - 2 * kernel(y, z).mean({1, 2});
  return (imm.weight(t) * mmd).mean();
}

enum class Variant { kImm, kFlowMatching, kEmaTarget, kNoDiagonals };

void average(ToyMlp& into, const ToyMlp& from, double decay) {
  const torch::NoGradGuard no_grad;
  const auto source = from.parameters();
  auto target = into.parameters();
  for (size_t i = 0; i < source.size(); ++i) target[i].lerp_(source[i], 1 - decay);
}

std::shared_ptr<ToyMlp> train(Variant variant, uint64_t seed, const Preconditioner& f,
                              const Objective& objective) {
  auto net = std::make_shared<ToyMlp>();
  auto ema = std::make_shared<ToyMlp>();
  for (auto* m : {net.get(), ema.get()}) initialize(*m, seed);
  torch::optim::Adam adam(net->parameters(), torch::optim::AdamOptions(1e-3));
  Context context;
  context.training = true;
  context.samples = torch::arange(kBatch);
  for (int64_t i = 0; i < kSteps; ++i) {
    context.rng = {.seed = seed, .step = static_cast<uint64_t>(i) + 1};
    const GeneratorBatch batch{data(context.samples, context.rng, Purpose::kShuffle), {}};
    const Draws draws = objective.draw(batch, 0, context);
    Tensor loss;
    if (variant == Variant::kNoDiagonals) {
      loss = loss_without_diagonals(dynamic_cast<const Imm&>(objective), f, *net, batch, draws,
                                    context);
    } else {
      ToyMlp& target = variant == Variant::kEmaTarget ? *ema : *net;
      loss = objective.loss(*net, target, batch, draws, context).losses.begin()->second;
    }
    adam.zero_grad();
    loss.backward();
    adam.step();
    const auto step = static_cast<double>(i);
    average(*ema, *net, std::min(.999, (1 + step) / (10 + step)));
  }
  return ema;
}

bool passes(Variant variant, uint64_t seed, const char* name) {
  const auto start = std::chrono::steady_clock::now();
  const Path path(PathConfig{.kind = "ot_fm", .sigma_data = 0.5});
  const Preconditioner f("euler_fm", path);
  ObjectiveConfig config;
  config.kind = variant == Variant::kFlowMatching ? "flow_matching" : "imm";
  config.imm.group_size = kGroup;
  config.imm.min_tr_gap = 1e-4;
  const auto objective = make_objective(config, f);
  const auto net = train(variant, seed, f, *objective);

  const Tensor images = torch::arange(kSamples);
  const Tensor reference =
      data(images, {.seed = seed, .step = 0}, Purpose::kEval).to(torch::kDouble);
  Context context;
  context.samples = images;
  const auto sample_in = [&](int64_t steps) {
    SamplerConfig sampler;
    sampler.steps = steps;
    const Tensor noise = prior_noise({2}, 0.5, seed, images, torch::kCPU);
    return judge(sample(*objective, path, *net, noise, {}, sampler, context, {}), reference);
  };
  const Quality one = sample_in(1);
  const Quality two = sample_in(2);
  const bool pass = one.energy < .005 && two.energy < .003 && one.hq > .75 && two.hq > .75 &&
                    one.smallest_mode > .07;
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  fmt::print(
      "{}: one step energy {:.4f} hq {:.3f} smallest mode {:.3f}; two steps energy {:.4f} hq "
      "{:.3f}: {} ({:.0f} s)\n",
      name, one.energy, one.hq, one.smallest_mode, two.energy, two.hq, pass ? "passes" : "fails",
      seconds);
  std::fflush(stdout);
  return pass;
}

int run(bool ablations) {
  at::set_num_threads(1);
  int64_t parameters = 0;
  for (const auto& p : ToyMlp().parameters()) parameters += p.numel();
  if (parameters != 165'890) {
    fmt::print("the network has {} parameters, not 165890\n", parameters);
    return 1;
  }
  const Tensor images = torch::arange(kSamples);
  const Quality ideal =
      judge(data(images, {.seed = 1, .step = 0}, Purpose::kBootstrap).to(torch::kDouble),
            data(images, {.seed = 1, .step = 0}, Purpose::kEval).to(torch::kDouble));
  fmt::print("data against data: energy {:.4f} hq {:.3f}\n", ideal.energy, ideal.hq);
  if (std::abs(ideal.energy) > .001 || std::abs(ideal.hq - .989) > .006) return 1;
  if (!ablations) return passes(Variant::kImm, 1, "imm") ? 0 : 1;
  // All of them run, so that the numbers are there.
  int passed = passes(Variant::kFlowMatching, 1, "flow matching");
  passed += passes(Variant::kEmaTarget, 1, "the average as target");
  passed += passes(Variant::kNoDiagonals, 1, "diagonals dropped");
  return passed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace sigma

int main(int argc, char** argv) {
  return sigma::run(argc > 1 && std::strcmp(argv[1], "--ablations") == 0);
}
