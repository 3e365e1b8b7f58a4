// The experts' networks on the rows of a plan.
//
//   y_t = sum over the rows r of token t, in order:  g_r FFN_e(x_t)
//   FFN(x) = W_out phi(W_in x + b_in) + b_out
//   swiglu: W_in [2I,C], rows a then b, phi = silu(a) b;  gelu, gelu_tanh: W_in [I,C]
//
// The backward with G = dy_t (no output of an expert is kept; Z = W_in x + b_in is):
//
//   dA' = W_out^T G,  dg = dA' . A + G . b_out,  dA = g dA',  dZ = phi'(Z) dA
//   dx_t += W_in^T dZ,  dW_out += G (g A)^T,  dW_in += dZ x_t^T,  db_out += g G,  db_in += dZ
//
// The reference is a loop over the experts. The `cpu` engine (float32 on the CPU) multiplies panels
// of an expert's rows, gathered and activated in the cache (kernels/panels.h); sums have a fixed
// order: the same bits on any number of threads. `grouped_mm` (bfloat16 on a GPU):
// experts_grouped.h. Experts without rows get exactly zero gradients from all.
#pragma once

#include <torch/types.h>

#include <string>

#include "sigma/moe/plan.h"

namespace sigma {

struct Experts {
  torch::Tensor w_in;   // [E, 2I or I, C]
  torch::Tensor w_out;  // [E, C, I]
  torch::Tensor b_in;   // [E, 2I or I], or undefined
  torch::Tensor b_out;  // [E, C], or undefined
  std::string activation = "swiglu";
};

/// x [T,C]; pair_weight [P] in at least float32 -> y [T,C] in x's dtype. Errors: kUsage (an engine
/// that cannot do this device, dtype or size). engine: auto | reference | cpu | grouped_mm; auto is
/// the fastest that can, and says once why the reference runs.
torch::Tensor run_experts(const std::string& engine, const torch::Tensor& x, const Experts& experts,
                          const torch::Tensor& pair_weight, const Plan& plan);
/// The definition.
torch::Tensor experts_reference(const torch::Tensor& x, const Experts& experts,
                                const torch::Tensor& pair_weight, const Plan& plan);
torch::Tensor experts_cpu(const torch::Tensor& x, const Experts& experts,
                          const torch::Tensor& pair_weight, const Plan& plan);

/// In a backward: the fast engines have none. Errors: kUsage (a graph of the backward is wanted).
void refuse_second_derivative(const char* engine);

/// phi of Z, which has 2I or I numbers along `dim`.
torch::Tensor expert_activation(const torch::Tensor& Z, const std::string& activation,
                                int64_t dim = -1);

}  // namespace sigma
