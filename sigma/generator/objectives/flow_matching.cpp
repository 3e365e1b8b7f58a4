#include "sigma/generator/objectives/flow_matching.h"

#include <torch/types.h>

namespace sigma {

using torch::Tensor;

void FlowMatchingConfig::visit(ConfigVisitor& v) {
  v.choice("time", time, {"uniform", "logit_normal"}, "distribution of t");
  v.field("p_mean", p_mean, in(-10, 10), "logit_normal: mean");
  v.field("p_std", p_std, above(0, 5), "logit_normal: standard deviation");
  v.field("label_dropout", label_dropout, below(0, 1),
          "share of the labels replaced by the null label");
}

FlowMatching::FlowMatching(const FlowMatchingConfig& config, Preconditioner preconditioner)
    : config_(config), f_(std::move(preconditioner)) {}

Draws FlowMatching::draw(const GeneratorBatch& batch, int64_t null_label,
                         const Context& context) const {
  const Path& path = f_.path();
  Tensor v = torch::empty({batch.data.size(0)}, torch::kDouble);
  if (config_.time == "uniform") {
    fill_uniform(v, context.rng, Purpose::kTimes, 0, context.samples);
  } else {
    fill_normal(v, context.rng, Purpose::kTimes, 0, context.samples);
    v = torch::sigmoid(config_.p_mean + config_.p_std * v);
  }
  const Tensor t = (path.t_min() + v * (path.t_max() - path.t_min())).to(batch.data.device());
  return {.t = t,
          .r = {},
          .s = t,
          .eps = draw_noise(batch.data, path.sigma_data(), context),
          .student_labels = drop_labels(batch.labels, config_.label_dropout, null_label, context)};
}

Output FlowMatching::loss(Network& student, Network&, const GeneratorBatch& batch,
                          const Draws& draws, const Context& context) const {
  const Tensor x_t = f_.path().interpolate(batch.data, draws.eps, draws.t);
  Output result = raw_output(student, f_, x_t, draws.t, draws.s, {draws.student_labels}, context);
  const Tensor error = result.value - f_.target(batch.data, draws.eps, draws.t);
  result.value = error.square().flatten(1).mean(1);
  result.losses["flow_matching"] = result.value.mean();
  return result;
}

Tensor FlowMatching::jump(Network& network, const Tensor& x_t, const Tensor& t, const Tensor& s,
                          const Condition& condition, const GuidanceConfig& guidance,
                          const Context& context) const {
  return f_.apply(x_t, guided_output(network, f_, x_t, t, t, condition, guidance, context), s, t);
}

}  // namespace sigma
