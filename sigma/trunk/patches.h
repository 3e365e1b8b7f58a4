// Images [B,C,H,W] to rows of patches [B,N,C p p] and back, the grid in raster order. Not
// supported: patches that are not square, sides that the patch does not divide, frames.
#pragma once

#include <torch/types.h>

#include "sigma/nn/token_layout.h"

namespace sigma {

/// [B,C,H,W] -> [B, H/p W/p, C p p], channels of a row in the order (channel, row, column): a
/// strided convolution's flattened kernel. Errors: kUsage (p does not divide a side).
torch::Tensor patchify(const torch::Tensor& images, int64_t patch);
/// [B, N, p p C] with channels in the order (row, column, channel) -> [B,C,H,W].
torch::Tensor unpatchify(const torch::Tensor& tokens, const Grid& grid, int64_t patch,
                         int64_t channels);
/// The grid of patches of an image of height x width. Errors: kUsage.
Grid patch_grid(int64_t height, int64_t width, int64_t patch);

}  // namespace sigma
