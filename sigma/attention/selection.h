// Which blocks a row of queries attends: scores of blocks, and the choice among them.
//
// Scores (Native Sparse Attention, arXiv 2502.11089, eq. 9 and 10), from the probabilities of
// compressed keys, windows of l tokens every d:
//
//   p_slc[j] = sum_i w_ij p_cmp[i],  w_ij = |window_i and block_j| / d,  then summed over a group
//
// Eq. 9 counts from 1: read from 0 it points b/d - 1 strides early.
//
// The choice (eq. 11, 12) takes n blocks: the forced ones (the first `init_blocks`, and those
// within `local_radius` of the row's own), then by `strategy`:
//
//   top_n     highest score first
//   max_min   repeat: argmax of alpha log p_j + log min_{i chosen} (1 - cos(c_i, c_j))
//             (DivPrune, arXiv 2503.02175, is alpha = 0)
//   dart      pivots, the forced blocks and the best `num_pivots`; each takes a share of the rest,
//             lowest cosine to itself first (DART, arXiv 2502.11494)
//
// c_j is the mean key of block j. Both filter each row's best `pool_factor` n candidates, where the
// papers filter tokens, whatever the query. Ties: higher score, then lower index; NaN scores last.
#pragma once

#include <torch/types.h>

#include "sigma/attention/block_plan.h"
#include "sigma/base/config.h"

namespace sigma {

struct SelectionConfig {
  int64_t num_selected = 16;
  std::string strategy = "top_n";  // top_n | dart | max_min
  int64_t init_blocks = -1;        // -1: 1 if causal, else 0
  int64_t local_radius = -2;       // blocks on each axis; -1: none forced; -2: 1 if causal, else 0
  int64_t pool_factor = 4;         // 0: all
  int64_t num_pivots = 2;
  std::string pivot = "score";  // score | key_norm
  double alpha = 1;
  void visit(ConfigVisitor& v);
};

/// Eq. 9: p_cmp [..., windows] -> [..., ceil(N / block)] for windows of `size` tokens every
/// `stride` of a sequence of N. Errors: kUsage (stride divides neither size nor block; size >
/// block).
torch::Tensor block_scores(const torch::Tensor& p_cmp, int64_t N, int64_t size, int64_t stride,
                           int64_t block);

/// `init_blocks` and `local_radius` where the configuration leaves them open.
struct ForcedBlocks {
  int64_t init = 0;
  int64_t radius = -1;
};
ForcedBlocks forced_of(const SelectionConfig& config, bool causal);

/// Errors: kUsage (a row anywhere in `geometry` has more forced blocks than n).
void check_forced(const SelectionConfig& config, const BlockGeometry& geometry, bool causal);

/// The rows of a selection: tiles of `geometry`, or its packed tokens.
struct SelectionRows {
  bool tiles = false;
  bool causal = false;  // a row may choose blocks that begin no later than it
  int64_t first = 0;    // the row of scores[..., 0, :]
};

/// scores [B,G,rows,W] -> lists int32 [B,G,rows,min(n, W)], ascending, -1 at the end. `keys`
/// [B,G,W,D]: mean keys, for `dart` and `max_min`. On the CPU; no gradient. Errors: kUsage (more
/// forced blocks than n).
torch::Tensor select_blocks(const SelectionConfig& config, const BlockGeometry& geometry,
                            const SelectionRows& rows, const torch::Tensor& scores,
                            const torch::Tensor& keys = {});

}  // namespace sigma
