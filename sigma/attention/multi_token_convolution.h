// The convolutions of multi-token attention's keys and values on NVIDIA GPUs
// (kernels/multi_token_conv.h), any grid. Builds without CUDA take nothing.
#pragma once

#include "sigma/attention/multi_token_op.h"
#ifdef SIGMA_CUDA
#include "sigma/attention/kernels/multi_token_conv.h"
#endif

namespace sigma {

/// For x [B,H,N,D] and a kernel [H,a,b], wide [B,H,N,a,D]: wide[n,a] = sum_b kernel[a,b] x[n - b], or
/// n + b (sign -1), with zeros off the grid.
bool takes_wide_convolution(const torch::Tensor& x, const ScoreMixing& m);
torch::Tensor wide_convolution(const torch::Tensor& x, const ScoreMixing& m,
                               const TokenLayout& layout, int sign);

#ifdef SIGMA_CUDA
/// Arguments of the kernels. x [B,H,N,D] and weights [H,a,b] are contiguous; results are the caller's.
kernels::WideConvolution convolution(const torch::Tensor& x, const torch::Tensor& weight,
                                     const ScoreMixing& m, const TokenLayout& layout, int sign);
kernels::TokenGrid kernel_grid(const TokenLayout& layout);
kernels::StepList kernel_steps(const std::vector<GridStep>& steps);
kernels::Element kernel_element(const torch::Tensor& x);
bool kernels_take(const ScoreMixing& m);
#endif

}  // namespace sigma
