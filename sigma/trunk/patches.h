// Images [B,C,H,W] or clips [B,C,F,H,W] to rows of patches [B,N,C p p] and back, the grid in raster
// order; a patch is of one frame. Not supported: patches that are not square, sides that the patch
// does not divide.
#pragma once

#include <torch/types.h>

#include "sigma/nn/token_layout.h"

namespace sigma {

/// [B,C,H,W] -> [B, H/p W/p, C p p], [B,C,F,H,W] -> [B, F H/p W/p, C p p], channels of a row in the
/// order (channel, row, column): a strided convolution's flattened kernel. Errors: kUsage
/// (p does not divide a side).
torch::Tensor patchify(const torch::Tensor& images, int64_t patch);
/// [B, N, p p C] with channels in the order (row, column, channel) -> [B,C,H,W]; [B,C,F,H,W] for a
/// grid of several frames.
torch::Tensor unpatchify(const torch::Tensor& tokens, const Grid& grid, int64_t patch,
                         int64_t channels);
/// The grid of patches of `frames` images of height x width. Errors: kUsage.
Grid patch_grid(int64_t height, int64_t width, int64_t patch, int64_t frames = 1);

}  // namespace sigma
