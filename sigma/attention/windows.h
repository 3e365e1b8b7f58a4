// Windows of tokens that native sparse attention compresses, as rows of a packed geometry
// (block_plan.h): int64 [windows, size], -1 where a window has no token.
#pragma once

#include <torch/types.h>

#include "sigma/attention/block_plan.h"

namespace sigma {

/// Windows of `size` tokens every `stride` of a sequence of N: the complete ones if causal, else as
/// many as cover it.
torch::Tensor sequence_windows(int64_t N, int64_t size, int64_t stride, bool causal);

/// The cubes of a grid.
torch::Tensor cube_windows(const BlockGeometry& geometry);

/// Coordinates of the windows' centres [windows, axes], float64; `before`: tokens before the grid.
torch::Tensor window_centres(const torch::Tensor& windows, const BlockGeometry& geometry,
                             int64_t before);

/// Whether window i is rows i stride, i stride + 1, ... of x, for all of at least one.
bool regular(const torch::Tensor& windows, int64_t stride);

/// The tokens of x [B,G,Ng,D], grid tokens in packed order, window by window.
struct Windows {
  torch::Tensor slots;  // [B,G,windows,size,D]
  torch::Tensor known;  // [windows,size,1]: 0 where a window has no token; undefined: never
  Windows(const torch::Tensor& x, const torch::Tensor& windows);
  /// `count` windows one after the other: a view of x.
  Windows(const torch::Tensor& x, int64_t count, int64_t size);
  torch::Tensor mean() const {
    return known.defined() ? (slots * known).sum(3) / known.sum(1) : slots.mean(3);
  }
};

}  // namespace sigma
