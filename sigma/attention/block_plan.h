// Blocks: the tokens of a grid in cubes, and the lists of blocks that rows of queries attend.
//
// Tokens are packed cube after cube, cubes and the tokens inside one in raster order, without
// padding: cubes at the far edges are smaller. The tokens before and after the grid follow in
// blocks of their own, of at most the same size. A 1-D sequence has cubes {1, 1, S}.
//
// A list names blocks: int32 [B,G,R,n], distinct, in any order; -1: none. Its rows are tiles of
// queries (the same cubes) or single tokens (R = N). Memory O(N n).
#pragma once

#include <torch/types.h>

#include <cstdint>

#include "sigma/base/config.h"
#include "sigma/nn/token_layout.h"

namespace sigma {

/// Sides of a cube: frames, rows, columns.
struct Extent {
  int64_t frames = 1;
  int64_t height = 1;
  int64_t width = 64;
  int64_t size() const { return frames * height * width; }
  bool operator==(const Extent&) const = default;
};

struct BlockGeometry {
  Grid grid;                // of tokens
  Extent block;             // sides of a full cube
  Grid cubes;               // how many cubes on each axis
  int64_t grid_blocks = 0;  // cubes; their ids come first
  int64_t blocks = 0;       // with those of the tokens before and after
  torch::Tensor order;      // [N] int64: packed row -> token of the layout
  torch::Tensor inverse;    // [N] int64: token -> packed row
  torch::Tensor start;      // [blocks + 1] int64: first packed row of each block
  torch::Tensor block_of;   // [N] int64: packed row -> block
  torch::Tensor rank;       // [N] int64: packed row -> causal rank, the token's index

  int64_t tokens() const { return order.size(0); }
};

/// Errors: kUsage (a side below 1, a masked layout).
BlockGeometry block_geometry(const TokenLayout& layout, const Extent& block);

/// The blocks that causal windows of `window` tokens (own token included) of the tokens of a cube
/// touch, for every cube of a 1-D geometry: int32 [grid_blocks, n].
torch::Tensor window_lists(const BlockGeometry& geometry, int64_t window);

/// All blocks, for `rows` rows: int32 [rows, blocks].
torch::Tensor dense_lists(const BlockGeometry& geometry, int64_t rows);

}  // namespace sigma
