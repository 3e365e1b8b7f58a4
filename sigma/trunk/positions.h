// Fixed sine-cosine positions (arXiv 2111.06377, 2212.09748).
#pragma once

#include <torch/types.h>

#include "sigma/nn/token_layout.h"

namespace sigma {

/// [N, width] float64. An axis of width d codes position p as [sin(p w) | cos(p w)], w_i =
/// 10000^(-i/(d/2)). `axes` 1: the token's index over the whole width; 2: the first half codes the
/// column, the second the row. Errors: kUsage (width not divisible by 2, by 4 with two axes; a grid
/// with more axes).
torch::Tensor sincos_positions(const Grid& grid, int64_t width, int axes);

/// The same in the layout of ViTok (arXiv 2501.09755): w_i = 10000^(-i/(d/2-1)), on two axes
/// [sin x | cos x | sin y | cos y].
torch::Tensor sincos_bv(const Grid& grid, int64_t width, int axes);

/// v [B] -> [cos(v f) | sin(v f)] [B, 2 half], f_i = exp(-ln(10000) i / half), in float64.
torch::Tensor time_features(const torch::Tensor& v, int64_t half);

}  // namespace sigma
