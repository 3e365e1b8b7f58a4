#include "sigma/generator/sampler.h"

#include <torch/types.h>

#include <cmath>

#include "sigma/base/error.h"

namespace sigma {
namespace {

using torch::Tensor;

Tensor keyed_normal(const std::vector<int64_t>& sample_shape, double scale, uint64_t seed,
                    Purpose purpose, uint32_t site, const Tensor& indices, torch::Device device) {
  std::vector<int64_t> shape{indices.numel()};
  shape.insert(shape.end(), sample_shape.begin(), sample_shape.end());
  // Drawn in float32: the prior is the same number whatever the state's precision.
  Tensor out = torch::empty(shape, torch::TensorOptions().dtype(torch::kFloat).device(device));
  fill_normal(out, {.seed = seed, .step = 0}, purpose, site, indices);
  return out.to(torch::kDouble).mul_(scale);
}

}  // namespace

void SamplerConfig::visit(ConfigVisitor& v) {
  v.choice("kind", kind, {"pushforward", "restart"}, "jump on from x_s, or re-noise x_0 each time");
  v.field("steps", steps, in(1, 1000), "network calls");
  v.choice("schedule", schedule, {"uniform", "edm", "explicit"}, "times between t_max and t_min");
  v.field("rho", rho, in(1, 20), "edm: exponent");
  v.field("mid_eta", mid_eta, above(0, 1e6), "explicit: falling noise ratios, one less than steps");
  v.table("guidance", guidance, "classifier-free guidance");
}

std::vector<double> sampler_times(const SamplerConfig& config, const Path& path) {
  const int64_t N = config.steps;
  std::vector<double> times;
  if (config.schedule == "explicit") {
    SIGMA_CHECK(kUsage, static_cast<int64_t>(config.mid_eta.size()) == N - 1,
                "sampler.mid_eta: expected {} numbers for {} steps, got {}", N - 1, N,
                config.mid_eta.size());
    times.push_back(path.t_max());
    for (const double eta : config.mid_eta) times.push_back(path.eta_inverse(eta));
    times.push_back(path.t_min());
  } else {
    const double high = path.t_max();
    const double low = path.t_min();
    SIGMA_CHECK(kUsage, config.schedule != "edm" || high < path.range_end(),
                "sampler.schedule: edm expects path.t_max below {}", path.range_end());
    const double root_high = std::pow(path.eta(high), 1 / config.rho);
    const double root_low = std::pow(path.eta(low), 1 / config.rho);
    for (int64_t i = 0; i <= N; ++i) {
      const double w = static_cast<double>(i) / static_cast<double>(N);
      if (i == 0) times.push_back(high);
      else if (i == N) times.push_back(low);
      else if (config.schedule == "uniform") times.push_back(high + w * (low - high));
      else
        times.push_back(
            path.eta_inverse(std::pow(root_high + w * (root_low - root_high), config.rho)));
    }
  }
  for (size_t i = 1; i < times.size(); ++i) {
    SIGMA_CHECK(kUsage, times[i] < times[i - 1], "sampler: expected falling times, got {} after {}",
                times[i], times[i - 1]);
  }
  return times;
}

Tensor sample(const Objective& objective, const Path& path, Network& network, const Tensor& noise,
              const Condition& condition, const SamplerConfig& config, const Context& context,
              const FreshNoise& fresh, const std::function<void(const Tensor&)>& each) {
  const torch::NoGradGuard no_grad;
  const std::vector<double> times = sampler_times(config, path);
  const auto filled = [&](double value) {
    return torch::full({noise.size(0)}, value, noise.options().dtype(torch::kDouble));
  };
  Tensor x = noise.to(torch::kDouble);
  for (size_t i = 0; i + 1 < times.size(); ++i) {
    const bool restart = config.kind == "restart";
    const double to = restart ? times.back() : times[i + 1];
    x = objective.jump(network, x, filled(times[i]), filled(to), condition, config.guidance,
                       context);
    if (each) each(x);
    if (restart && i + 2 < times.size()) {
      x = path.interpolate(x, fresh(static_cast<int64_t>(i)), filled(times[i + 1]));
    }
  }
  return x;
}

Tensor prior_noise(const std::vector<int64_t>& sample_shape, double sigma_data, uint64_t seed,
                   const Tensor& indices, torch::Device device) {
  return keyed_normal(sample_shape, sigma_data, seed, Purpose::kPrior, 0, indices, device);
}

FreshNoise restart_noise(const std::vector<int64_t>& sample_shape, double sigma_data, uint64_t seed,
                         const Tensor& indices, torch::Device device) {
  return [=](int64_t site) {
    return keyed_normal(sample_shape, sigma_data, seed, Purpose::kRestart,
                        static_cast<uint32_t>(site), indices, device);
  };
}

}  // namespace sigma
