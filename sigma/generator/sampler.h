// Samplers: from noise to data by a few jumps (IMM, arXiv 2503.07565).
//
//   pushforward (IMM, algorithm 4): for i = N..1: x = jump(x, t_i, t_{i-1})
//   restart (algorithm 5):          for i = N..1: x0 = jump(x, t_i, t_min);
//                                   if i > 1: x = interpolate(x0, fresh eps, t_{i-1})
//   times, from t_N = t_max to t_0 = t_min:
//     uniform: in t;  edm: in eta^(1/rho);  explicit: t_max, eta^-1(mid_eta), t_min
//
// With flow matching's jump, pushforward is Euler's method. N network calls (twice the rows under
// guidance). The state is float64. Not supported: Heun, stochastic samplers.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "sigma/generator/objective.h"

namespace sigma {

struct SamplerConfig {
  std::string kind = "pushforward";  // pushforward | restart
  int64_t steps = 1;
  std::string schedule = "uniform";  // uniform | edm | explicit
  double rho = 7;                    // edm
  std::vector<double>
      mid_eta;  // explicit: noise ratios between t_max and t_min; steps = its length + 1
  GuidanceConfig guidance;
  void visit(ConfigVisitor& v);
};

/// t_N, ..., t_0 (N + 1 falling times). Errors: kUsage.
std::vector<double> sampler_times(const SamplerConfig& config, const Path& path);

/// Fresh noise [B,...] before jump `site`, for `restart`.
using FreshNoise = std::function<torch::Tensor(int64_t site)>;

/// x at t_max -> x at t_min, float64. `each` (may be empty) sees the result of every jump.
torch::Tensor sample(const Objective& objective, const Path& path, Network& network,
                     const torch::Tensor& noise, const Condition& condition,
                     const SamplerConfig& config, const Context& context, const FreshNoise& fresh,
                     const std::function<void(const torch::Tensor&)>& each = {});

/// sigma_data times the prior's normal numbers for the images `indices`, float64 on `device`.
torch::Tensor prior_noise(const std::vector<int64_t>& sample_shape, double sigma_data,
                          uint64_t seed, const torch::Tensor& indices, torch::Device device);
/// Restart noise for those images.
FreshNoise restart_noise(const std::vector<int64_t>& sample_shape, double sigma_data, uint64_t seed,
                         const torch::Tensor& indices, torch::Device device);

}  // namespace sigma
