#include "sigma/generator/objective.h"

#include <torch/types.h>

#include "sigma/base/error.h"

namespace sigma {

using torch::Tensor;

void GuidanceConfig::visit(ConfigVisitor& v) {
  v.field("scale", scale, in(0, 100), "classifier-free guidance; 1 = off");
  v.field("t_lo", t_lo, in(0, 2), "guidance acts for t in [t_lo, t_hi]");
  v.field("t_hi", t_hi, in(0, 2), "guidance acts for t in [t_lo, t_hi]");
}

Output raw_output(Network& network, const Preconditioner& f, const Tensor& x_t, const Tensor& t,
                  const Tensor& s, const Condition& condition, const Context& context) {
  const auto parameters = network.parameters();
  const auto dtype = parameters.empty() ? torch::kDouble : parameters.front().scalar_type();
  const Tensor input = (expand_times(f.in(t), x_t) * x_t).to(dtype);
  return network.forward(input, t, s, condition, context);
}

Tensor guided_output(Network& network, const Preconditioner& f, const Tensor& x_t, const Tensor& t,
                     const Tensor& s, const Condition& condition, const GuidanceConfig& guidance,
                     const Context& context) {
  if (guidance.scale == 1) return raw_output(network, f, x_t, t, s, condition, context).value;
  SIGMA_CHECK(
      kUsage, condition.labels.defined() && network.num_classes() > 0,
      "guidance.scale = {}: expected a network with labels (num_classes > 0) and labels to ask for",
      guidance.scale);
  // Samplers move all images together: one time decides.
  const double time = t.numel() > 0 ? t[0].item<double>() : 0;
  if (time < guidance.t_lo || time > guidance.t_hi)
    return raw_output(network, f, x_t, t, s, condition, context).value;
  const Condition both{
      torch::cat({torch::full_like(condition.labels, network.num_classes()), condition.labels})};
  const auto twice = [](const Tensor& a) { return torch::cat({a, a}); };
  const auto G =
      raw_output(network, f, twice(x_t), twice(t), twice(s), both, context).value.chunk(2);
  return G[0] + guidance.scale * (G[1] - G[0]);
}

Tensor draw_noise(const Tensor& like, double sigma_data, const Context& context) {
  Tensor eps = torch::empty(like.sizes(), like.options());
  fill_normal(eps, context.rng, Purpose::kNoise, 0, context.samples);
  return eps.mul_(sigma_data);
}

Tensor drop_labels(const Tensor& labels, double share, int64_t null_label, const Context& context) {
  if (!labels.defined()) return labels;
  const Tensor dropped =
      bernoulli(share, context.rng, Purpose::kLabelDrop, 0, context.samples).to(labels.device());
  return labels.masked_fill(dropped, null_label);
}

}  // namespace sigma
