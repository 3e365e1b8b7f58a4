// Multi-token attention on NVIDIA GPUs: the kernels of kernels/multi_token_conv.h (any grid) and
// kernels/multi_token_hopper.h, as differentiable functions. Builds without CUDA take nothing.
#pragma once

#include "sigma/attention/multi_token_op.h"

namespace sigma {

/// For x [B,H,N,D] and a kernel [H,a,b], wide [B,H,N,a,D]: wide[n,a] = sum_b kernel[a,b] x[n - b], or
/// n + b (sign -1), with zeros off the grid.
bool takes_wide_convolution(const torch::Tensor& x, const ScoreMixing& m);
torch::Tensor wide_convolution(const torch::Tensor& x, const ScoreMixing& m,
                               const TokenLayout& layout, int sign);

/// Hopper; full attention on a sequence, 16-bit elements, heads of 64 channels, up to 6 neighbouring
/// query steps, heads that do not mix.
bool takes_multi_token_gpu(const MultiTokenInput& input);
/// out [B,H,N,D] and lse [B,H,N]. The backward keeps |a'| N D values a head, and score maps of some
/// heads at a time.
AttentionOutput multi_token_gpu(const MultiTokenInput& input);

}  // namespace sigma
