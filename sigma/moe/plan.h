// The routing plan: pairs of tokens and experts in the order in which experts compute. Built where
// they are, by counting on a CPU, by stable sorts on a GPU: the same, and no size depends on the data.
//
// Rows are ordered by expert, token, pair; a pair of expert -1 is dropped. Combining reads the rows
// of a token in ascending order, that of a loop over experts: no atomics, the same bits every time.
#pragma once

#include <torch/types.h>

#include <cstdint>

namespace sigma {

struct Plan {
  torch::Tensor offsets;        // [E+1] int32: rows of expert e are [offsets[e], offsets[e+1])
  torch::Tensor row_token;      // [R] int32: source of a row; -1 past offsets[E]
  torch::Tensor row_pair;       // [R]
  torch::Tensor token_offsets;  // [T+1]: rows of token t in token_rows
  torch::Tensor token_rows;     // [R] ascending for each token; -1 past the end
  torch::Tensor counts() const { return offsets.diff(); }  // [E] rows of every expert
};

/// pair_token, pair_expert [P] int64; R = P. Errors: kUsage (2^31 pairs or more; on the CPU, experts
/// outside [-1, experts), tokens outside [0, tokens)).
Plan make_plan(const torch::Tensor& pair_token, const torch::Tensor& pair_expert, int64_t tokens,
               int64_t experts);

}  // namespace sigma
