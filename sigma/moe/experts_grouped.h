// The experts on an NVIDIA GPU of the Hopper generation or later, in bfloat16: torch's grouped
// products (at::_grouped_mm) over the rows of a plan, kernels of our own around them
// (kernels/experts.h), and our own backward: experts without rows get exactly zero gradients,
// nothing is copied to the host, no size depends on the data.
//
// Bytes that move beside the products, forward: the gathered rows, Z, A and Y are written and read
// once. Kept for the backward: x itself, Z and the plan; rows are gathered and A is computed again.
#pragma once

#include <torch/types.h>

#include <string>

#include "sigma/moe/experts.h"

namespace sigma {

/// Why experts_grouped cannot run this, or "".
std::string grouped_refuses(const torch::Tensor& x, const Experts& experts);
/// As experts_reference, up to bfloat16's rounding. Errors: kDevice (a launch that failed).
torch::Tensor experts_grouped(const torch::Tensor& x, const Experts& experts,
                              const torch::Tensor& pair_weight, const Plan& plan);
/// r [T,E] float32 on the GPU without NaN -> the places of the K largest of every row, best first,
/// ties to the lower place, int64 [T,K].
torch::Tensor top_k_cuda(const torch::Tensor& r, int64_t K);

}  // namespace sigma
