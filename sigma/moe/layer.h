// Mixture of experts: shared experts that every token uses, and routed experts of which each token
// uses a few (DeepSeekMoE, arXiv 2401.06066, eq. 9-14).
//
//   y_t = FFN_shared(x_t) + sum_{pairs (t, i)} g_ti FFN_i(x_t)
//
// Who goes where: router.h. In which order: plan.h. The experts' networks: experts.h. Balance:
// balance.h. S shared experts are one FFN of S times the width, or of `shared_ratio`.
//
// Statistics (only where the Context records), summed over the layers: moe.max_violation =
// max n / mean n - 1, moe.entropy of n over log E, moe.empty_experts, moe.unrouted_tokens (expert
// choice: the share of tokens without expert).
#pragma once

#include <memory>
#include <string>

#include "sigma/base/config.h"
#include "sigma/moe/balance.h"
#include "sigma/moe/experts.h"
#include "sigma/moe/router.h"
#include "sigma/nn/mlp.h"

namespace sigma {

struct MoeConfig {
  int64_t num_experts = 8;    // E, routed
  int64_t num_chosen = 2;     // K, token choice
  int64_t num_shared = 1;     // S
  double expert_ratio = 1.0;  // width of one expert over the width of the model
  double shared_ratio = 0;  // width of the shared FFN over that of the model; 0: num_shared experts
  bool expert_bias = false;
  std::string expert_activation = "swiglu";  // swiglu | gelu | gelu_tanh
  std::string engine = "auto";               // auto | reference | cpu | grouped_mm
  RouterConfig router;
  BalanceConfig balance;
  /// Hidden width of one expert, and of the shared ones together, for `dim` channels.
  int64_t expert_width(int64_t dim) const;
  int64_t shared_width(int64_t dim) const;
  void visit(ConfigVisitor& v);
};

class MixtureOfExperts : public Mlp {
 public:
  /// Errors: kUsage (sizes that do not fit, with both).
  MixtureOfExperts(int64_t dim, const MoeConfig& config);
  Output forward(const torch::Tensor& x, const Context& context) override;
  double flops(int64_t tokens) const override;

  /// Of the last forward, for looking.
  const Routing& last_routing() const { return routing_; }

 private:
  torch::Tensor shared(const torch::Tensor& tokens) const;
  void move_bias(const Context& context);

  MoeConfig config_;
  int64_t hidden_;
  torch::Tensor router_;  // [E, C]
  Experts experts_;
  std::shared_ptr<Linear> shared_in_;
  std::shared_ptr<Linear> shared_out_;
  // Saved with the weights: the bias, and what was counted since it moved.
  torch::Tensor selection_bias_;  // [E]
  torch::Tensor counts_;          // [E]
  int64_t counted_step_ = -1;
  Routing routing_;
};

}  // namespace sigma
