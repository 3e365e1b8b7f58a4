// Block-sparse attention: every row of queries attends to the blocks of keys that its list names.
//
//   out_i = sum_{j in A(i)} softmax_j(scale q_i . k_j) v_j,  scale 1/sqrt(D), after the dot
//   A(i) = keys of listed blocks that are valid and, where ranks are given, not later than i
//
// q [B,H,Nq,D], k [B,G,Nk,D], v [B,G,Nk,Dv], in packed order (block_plan.h); query head h reads
// key/value head floor(h G / H). A(i) empty: out 0, lse -inf, gradients 0. Selection, windows, text
// tokens and causality are lists: one operator runs every pattern.
//
// The reference builds masks, a strip of queries at a time: any device and dtype. Kernels keep no
// score matrix in memory, and their bits do not change from run to run: on the CPU in float32
// (kernels/block_sparse.h), on NVIDIA GPUs in bfloat16 and float16 (block_sparse_gpu.h).
#pragma once

#include <torch/types.h>

#include <cstdint>

#include "sigma/attention/block_tables.h"
#include "sigma/attention/operator.h"

namespace sigma {

struct BlockSparseInput {
  torch::Tensor q, k, v;
  /// Lists: int32 [B,G,R,n] of distinct blocks; -1, or an id out of range: none.
  torch::Tensor index;
  torch::Tensor kv_start;   // [W+1] int64 on the CPU: first key of each block
  torch::Tensor q_start;    // [R+1] int64 on the CPU: tiles of queries; undefined: a list for each
  torch::Tensor rank_q;     // [Nq] int64 on the CPU: causal; undefined: not
  torch::Tensor rank_k;     // [Nk]
  int64_t window = 0;       // > 0 (with ranks): only keys with rank_q - rank_k < window
  torch::Tensor key_valid;  // [B,Nk] bool; the rows of other keys may hold NaN
  double scale = 0;         // 0: 1/sqrt(D)
  /// Of the starts and ranks above, on a GPU; null: made at every call.
  std::shared_ptr<const BlockTables> tables;
};

/// Errors: kUsage (shapes that do not fit, both printed; H not divisible by G).
AttentionOutput block_sparse_attention(const BlockSparseInput& input);
/// The definition.
AttentionOutput block_sparse_attention_reference(const BlockSparseInput& input);

}  // namespace sigma
