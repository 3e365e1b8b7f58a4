// Maximum mean discrepancy within groups: IMM's loss (arXiv 2503.07565, eq. 12 and 67).
//
//   m_g = (1/M^2) sum_{j,k} [k(y_j,y_k) + k(z_j,z_k) - 2 k(y_j,z_k)],  all pairs, j = k included
//   laplace  k(p,q) = exp(-kappa max(|p-q|_2, floor));  rbf  exp(-kappa max(|p-q|, floor)^2)
//
// Distances by direct differences (a Gram matrix loses 1e-2 of the loss in float32), k - 1 by
// expm1, so that MMD(y,y) = 0 exactly; the gradient is 0 for pairs below the floor. The M^2 values
// are summed in float64.
#pragma once

#include <torch/types.h>

#include <string>

namespace sigma {

struct GroupedMmd {
  torch::Tensor mmd;     // [G] float64, differentiable in y
  torch::Tensor yy_sim;  // [G] block means of k, detached: yy above zz is collapse
  torch::Tensor zz_sim;
  torch::Tensor yz_sim;
};

/// y, z [G,M,D], M <= 64; kappa [G] float64. kernel: laplace | rbf. Errors: kUsage (shapes, M,
/// kernel).
GroupedMmd grouped_mmd(const torch::Tensor& y, const torch::Tensor& z, const torch::Tensor& kappa,
                       const std::string& kernel, double distance_floor);

}  // namespace sigma
