// Mixture of experts, the reference: shared experts and routed experts of which each token uses a
// few (DeepSeekMoE, arXiv 2401.06066, eq. 9-14).
//
//   y_t = FFN_shared(x_t) + sum_{i in top-K of s_t} s_ti FFN_i(x_t)
//   s_t = softmax(W_r x_t) in float32, not renormalised
//   FFN(x) = W_out (silu(a) * b), [a | b] = W_in x; no biases
//   balance loss = weight * sum_i f_i P_i
//   f_i = E/(K T) #{t that chose i} (detached),  P_i = mean_t s_ti
//
// S shared experts are one FFN of S times the width. A plain loop over the experts: the definition,
// not a fast engine. Ties go to the lower index; a NaN score is never chosen before a number.
// Statistics (only where the Context records): moe.max_violation = max_i n_i / mean n - 1 and
// moe.empty_experts, summed over the layers.
#pragma once

#include <memory>
#include <string>

#include "sigma/base/config.h"
#include "sigma/nn/mlp.h"

namespace sigma {

struct MoeConfig {
  int64_t num_experts = 8;    // E, routed
  int64_t num_chosen = 2;     // K
  int64_t num_shared = 1;     // S
  double expert_ratio = 1.0;  // width of one expert over the width of the model
  double balance_weight = 0.01;
  void visit(ConfigVisitor& v);
};

class MixtureOfExperts : public Mlp {
 public:
  MixtureOfExperts(int64_t dim, const MoeConfig& config);
  Output forward(const torch::Tensor& x, const Context& context) override;
  double flops(int64_t tokens) const override;

 private:
  MoeConfig config_;
  int64_t hidden_;
  torch::Tensor router_;  // [E, C]
  torch::Tensor w_in_;    // [E, 2I, C]
  torch::Tensor w_out_;   // [E, C, I]
  std::shared_ptr<Linear> shared_in_;
  std::shared_ptr<Linear> shared_out_;
};

}  // namespace sigma
