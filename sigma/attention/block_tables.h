// What GPU kernels need of the starts and ranks of block-sparse attention, on the device. A layer
// makes it once for a layout; the operator makes its own where none is given.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <memory>

namespace sigma {

/// Chunks of queries and pieces of keys (kernels/block_walk.h). All tensors int32 on the device.
struct BlockTables {
  int64_t tokens = 64, heads = 1;          // of a chunk
  int64_t pieces_a_block = 1;              // at most
  torch::Tensor q_first;                   // [chunks + 1]
  torch::Tensor chunk_list;                // [chunks] first list
  torch::Tensor key_first;                 // [pieces + 1]
  torch::Tensor piece_start;               // [W + 1]
  torch::Tensor piece_masked;              // [pieces] uint8: fewer keys than a full piece
  torch::Tensor rank_q, rank_k;            // undefined: not causal
  torch::Tensor chunk_ranks, piece_ranks;  // [chunks, 2], [pieces, 2] lowest, highest

  int64_t chunks() const { return q_first.size(0) - 1; }
  int64_t pieces() const { return key_first.size(0) - 1; }
};

struct BlockSparseInput;

/// Of the shapes, starts and ranks of `input`, on q's device.
std::shared_ptr<const BlockTables> block_tables(const BlockSparseInput& input);

}  // namespace sigma
