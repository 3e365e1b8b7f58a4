// The forward by pieces, for token rows whose neighbours agree little: of a chunk of 64 rows that
// visits a piece only a few chose it. Here a piece gathers the rows that chose it, and every row of
// a matrix instruction is one of them:
//
//     sort      pairs (token, the i-th piece of its list) by piece, of a strip of tokens
//     pieces    for each 64 rows that chose a piece: S = scale Q K^T, hidden pairs -inf,
//               m = max S, l = sum exp(S - m), part = exp(S - m) V / l, lse = m + log l
//     merge     for each row, in the order of its list: out = sum exp(lse_i - lse) part_i
//
// A listed piece costs a row three times 2 D bytes (Q, and its part twice) instead of a share of K
// and V for each chunk that visits it. Parts have the inputs' type. A strip decides by itself which
// way it goes; its lists alone decide, so that bits do not change from run to run.
#pragma once

#include "sigma/attention/kernels/block_sparse_hopper_forward.h"

namespace sigma::kernels::hopper {

// A unit is a strip of a (b, g)'s tokens; they are numbered (b, g) after (b, g).
struct PairWork {
  int strip = 0;                  // tokens of a strip, whole bands
  int band = 0;                   // tokens of a band
  int bands = 0, strips = 0;      // of a (b, g)
  int units = 0;                  // all strips
  int at_once = 0;                // units of a launch
  int most = 0;                   // pieces of a list
  int pairs_an_item = 0;          // at most
  int64_t pairs = 0, items = 0;   // room of a unit
  int64_t rows = 0;               // of a unit: pairs * heads, and a spare one
  int32_t* band_count = nullptr;  // [B,G,bands,P] pairs of each piece
  int32_t* place = nullptr;       // [B,G,bands,P] the first of them, of the unit's
  int32_t* pair = nullptr;        // [units,pairs] token of the strip * most + i
  int4* item = nullptr;           // [units,items] piece, its first pair, the end
  int32_t* item_count = nullptr;  // [units]; 0: the unit goes by walks
  float* lse = nullptr;           // [at_once,rows] base 2, of the units at work; none: -inf, NaN
  void* part = nullptr;           // [at_once,rows,D]
};

/// Where everything lies from `memory` on, and how many bytes it takes.
PairWork pair_work(const BlockSparseGpu& a, const BlockWalk& w, void* memory, int64_t* bytes);
cudaError_t sort_pairs(const BlockWalk& w, const PairWork& work, cudaStream_t stream);
cudaError_t forward_pieces(const ForwardParams& p, const PairWork& work, cudaStream_t stream);

}  // namespace sigma::kernels::hopper
