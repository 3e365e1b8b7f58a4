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
#include <string>
#include <vector>

#include "sigma/nn/token_layout.h"

namespace sigma {

struct BlockGeometry {
  Grid grid;                // of tokens
  Grid block;               // sides of a full cube
  Grid cubes;               // how many cubes on each axis
  int64_t grid_blocks = 0;  // cubes; their ids come first
  int64_t blocks = 0;       // with those of the tokens before and after
  torch::Tensor order;      // [N] int64: packed row -> token of the layout
  torch::Tensor inverse;    // [N] int64: token -> packed row
  torch::Tensor start;      // [blocks + 1] int64: first packed row of each block
  torch::Tensor block_of;   // [N] int64: packed row -> block

  int64_t tokens() const { return order.size(0); }
  /// [N]: packed row -> causal rank: the token's place in the layout.
  const torch::Tensor& rank() const { return order; }
};

/// `sides` on the axes of a grid (frames, rows, columns) as a box, 1 on the axes it has not.
/// Errors: kUsage (another number of sides, naming `key`).
Grid box_of_sides(const std::string& key, const std::vector<int64_t>& sides, int axes);

/// Errors: kUsage (a side below 1, a masked layout).
BlockGeometry block_geometry(const TokenLayout& layout, const Grid& block);

/// The blocks that causal windows of `window` tokens (own token included) of the tokens of a cube
/// touch, for every cube of a 1-D geometry: int32 [grid_blocks, n].
torch::Tensor window_lists(const BlockGeometry& geometry, int64_t window);

/// Where blocks of `size` rows begin, and the end: int64 [ceil(N / size) + 1].
torch::Tensor block_starts(int64_t N, int64_t size);

}  // namespace sigma
