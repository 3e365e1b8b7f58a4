// Keeping experts equally busy.
//
//   n_i tokens chose i;  f_i = E / (K T) n_i;  P_i = mean_t s_ti (sigmoid: s_ti / sum_j s_tj)
//   expert loss    a1 sum_i f_i P_i                      DeepSeekMoE, arXiv 2401.06066, eq. 12-14
//   device loss    a2 sum_d (mean of f over E_d) (sum of P over E_d), D groups E_d, eq. 15-17
//   scope          over all tokens, or over those of each image, then the mean (`sequence`)
//   selection bias b_i += u sign(mean n - n_i), less the mean of the increments; no gradient
//                  (arXiv 2408.15664)
//
// f has no gradient. The bias moves once an optimizer step, by the counts of all its passes that
// record: target passes, evaluation and recomputation never count.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <string>

#include "sigma/base/config.h"
#include "sigma/moe/router.h"

namespace sigma {

struct BalanceConfig {
  double expert = 0.01;         // a1
  double device = 0;            // a2
  int64_t devices = 1;          // D
  std::string scope = "batch";  // batch | sequence
  double bias_rate = 0;         // u; 0: no bias
  bool bias_center = true;
  void visit(ConfigVisitor& v);
};

struct BalanceLosses {
  torch::Tensor expert, device;  // unweighted scalars
};

/// Token choice. `sigmoid`: scores are not probabilities. Errors: none; T = 0 gives 0.
BalanceLosses balance_losses(const Routing& routing, int64_t images, bool sequence, bool sigmoid,
                             int64_t devices);
/// b after a step in which the experts were chosen `counts` times.
torch::Tensor moved_bias(const torch::Tensor& bias, const torch::Tensor& counts, double rate,
                         bool center);

}  // namespace sigma
