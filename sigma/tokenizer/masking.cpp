#include "sigma/tokenizer/masking.h"

#include <torch/types.h>

#include <algorithm>

#include "sigma/base/error.h"

namespace sigma {
namespace {

using torch::Tensor;

// Draws of Purpose::kMask.
constexpr uint32_t kRatioSite = 256;
constexpr uint32_t kKeySite = 257;
constexpr double kSlack = 1e-9;  // so that N r, a whole number but for rounding, is not rounded up

Tensor uniforms(torch::IntArrayRef shape, const Context& context, uint32_t site,
                const Tensor& samples) {
  Tensor u = torch::empty(shape, torch::kDouble);
  fill_uniform(u, context.rng, Purpose::kMask, site, samples);
  return u;
}

MaskConfig at_step(MaskConfig config, uint64_t step) {
  if (config.ramp_steps == 0) return config;
  const double share =
      std::min(1.0, static_cast<double>(step) / static_cast<double>(config.ramp_steps));
  config.low += share * (config.end_low - config.low);
  config.high += share * (config.end_high - config.high);
  return config;
}

}  // namespace

Mask Mask::to(torch::Device device) const {
  const auto moved = [&](const Tensor& t) {
    return t.defined() ? t.to(device, t.scalar_type(), /*non_blocking=*/true) : t;
  };
  return {.hidden = moved(hidden), .visible = moved(visible)};
}

void MaskConfig::visit(ConfigVisitor& v) {
  v.choice("policy", policy, {"none", "replace", "drop"},
           "hidden patches become a mask token, or leave the sequence");
  v.field("low", low, below(0, 1), "smallest share of hidden patches");
  v.field("high", high, below(0, 1), "largest share of hidden patches");
  v.choice("distribution", distribution, {"uniform", "truncated_normal"},
           "of the share between low and high; truncated_normal prefers high");
  v.field("scale", scale, above(0, 10), "standard deviation of truncated_normal");
  v.choice("per", per, {"sample", "step"}, "a share for every sample, or one a step");
  v.field("end_low", end_low, below(0, 1), "low after ramp_steps");
  v.field("end_high", end_high, below(0, 1), "high after ramp_steps");
  v.field("ramp_steps", ramp_steps, in(0, 1e9), "steps of the way to the ends; 0 = stay");
}

void check_mask(const MaskConfig& config) {
  SIGMA_CHECK(kUsage, config.low <= config.high, "mask.low: expected at most high = {}, got {}",
              config.high, config.low);
  SIGMA_CHECK(kUsage, config.ramp_steps == 0 || config.end_low <= config.end_high,
              "mask.end_low: expected at most end_high = {}, got {}", config.end_high,
              config.end_low);
  SIGMA_CHECK(kUsage, config.policy != "drop" || config.per == "step",
              "mask.per: expected step with policy drop (rows of one batch must keep equally many "
              "patches), got {}",
              config.per);
}

Tensor mask_ratio(const MaskConfig& config, const Tensor& u) {
  if (config.distribution == "uniform") return config.low + u * (config.high - config.low);
  const Tensor edge = torch::full({}, (config.low - config.high) / config.scale, u.options());
  const Tensor a = at::special_ndtr(edge);
  return config.high + config.scale * at::special_ndtri(a + u * (0.5 - a));
}

Tensor hidden_count(const Tensor& ratio, int64_t N) {
  return (ratio * N - kSlack).ceil().clamp(1, N - 1).to(torch::kInt64);
}

Mask draw_mask(const MaskConfig& config, int64_t N, const Context& context) {
  if (config.policy == "none") return {};
  SIGMA_CHECK(kUsage, N >= 2, "mask.policy: expected none for an image of {} patches, got {}", N,
              config.policy);
  const int64_t B = context.samples.size(0);
  const bool shared = config.per == "step";
  // The ratio of a step is that of the global batch's first sample.
  const Tensor owners = shared ? torch::zeros({1}, torch::kInt64) : context.samples;
  const Tensor u = uniforms({owners.size(0)}, context, kRatioSite, owners);
  const Tensor ratio = mask_ratio(at_step(config, context.rng.step), u);
  const Tensor M = hidden_count(ratio, N).expand({B});

  // A key is a word w and then the index: w rises with (w + 1/2) 2^-32, which is exact, and a
  // stable sort keeps the order of the indices.
  const Tensor keys = uniforms({B, N}, context, kKeySite, context.samples);
  const Tensor order = torch::argsort(keys, /*stable=*/true, 1, /*descending=*/false);
  Mask mask{.hidden = torch::zeros({B, N}, torch::kBool), .visible = {}};
  mask.hidden.scatter_(1, order, torch::arange(N) < M.unsqueeze(1));
  if ((M == M[0]).all().item<bool>())
    mask.visible = mask.hidden.logical_not().nonzero().select(1, 1).view({B, -1});
  return mask;
}

}  // namespace sigma
