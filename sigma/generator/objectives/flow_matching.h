// Flow matching (arXiv 2210.02747; SiT, arXiv 2401.08740): the network learns the preconditioner's
// target, the velocity for euler_fm.
//
//   loss = mean |G(c_in x_t, t, t) - target(x, eps, t)|^2
//   t uniform in (t_min, t_max), or logit-normal
//   jump = one Euler (DDIM) step with G at (x_t, t)
//
// Costs one forward and one backward. Not supported: weighted losses, learned variance.
#pragma once

#include "sigma/generator/objective.h"

namespace sigma {

struct FlowMatchingConfig {
  std::string time = "uniform";  // uniform | logit_normal
  double p_mean = 0;
  double p_std = 1;
  double label_dropout = 0.1;
  void visit(ConfigVisitor& v);
};

class FlowMatching : public Objective {
 public:
  FlowMatching(const FlowMatchingConfig& config, Preconditioner preconditioner);
  Needs needs() const override { return {}; }
  Draws draw(const GeneratorBatch& batch, int64_t null_label,
             const Context& context) const override;
  Output loss(Network& student, Network& target, const GeneratorBatch& batch, const Draws& draws,
              const Context& context) const override;
  torch::Tensor jump(Network& network, const torch::Tensor& x_t, const torch::Tensor& t,
                     const torch::Tensor& s, const Condition& condition,
                     const GuidanceConfig& guidance, const Context& context) const override;
  double passes_per_step() const override { return 3; }

 private:
  FlowMatchingConfig config_;
  Preconditioner f_;
};

}  // namespace sigma
