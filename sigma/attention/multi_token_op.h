// Multi-token attention as an operator: a score depends on the scores of neighbouring queries and
// keys, and of other heads ("Multi-Token Attention", arXiv 2504.00927, section 3).
//
//   S  = scale Q K^T                                   per head; hidden pairs are 0
//   S'[i,j] = sum_{a,b} theta[a,b] S[i-a,j-b]          before: a and b are steps on the grid
//   S'_h = sum_g w[h,g] S'_g                           over the heads of a group
//   P  = softmax of S' over the keys that i may see
//   A[i,j] = sum_{a,b} phi[a,b] P[i-a,j-b],  A_h = sum_g m[h,g] A_g    after; hidden pairs are 0
//   out = A V                                          A's rows need not sum to 1
//
// Off the grid everything is 0. Tokens before and after the grid are grids of one token each: only
// the step 0 exists for them. "Hidden" follows the layout's pattern. (The released code's form:
// the causal mask applies to S before the convolution.) Not supported: masked layouts, queries and
// keys of different layouts.
//
// The definition holds the score maps. On the CPU in float32 strips of them pass through a kernel
// (kernels/multi_token.h): memory O(N) times the queries of a strip, which is at least what kernels
// reach, the same bits on any number of threads. On a GPU full attention without missing keys runs
// in wider heads, on sequences by kernels of its own (multi_token_gpu.h), elsewhere by torch's
// (multi_token_wide.h), the rest in strips (multi_token_strips.h). path.h has the choice.
#pragma once

#include <torch/types.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "sigma/attention/operator.h"
#include "sigma/nn/token_layout.h"

namespace sigma {

using GridStep = std::array<int64_t, 3>;  // frames, rows, columns

/// What happens to score maps on one side of the softmax.
struct ScoreMixing {
  torch::Tensor kernel;           // [H, queries, keys]; undefined: no convolution
  std::vector<GridStep> queries;  // steps a
  std::vector<GridStep> keys;     // steps b
  torch::Tensor mix;              // [H/c, c, c] (to, from); undefined: heads do not mix
};

/// The steps of a box of `sides`: centred (odd sides), or 0 and up to sides - 1 back. Errors:
/// kUsage (an even side, centred, naming `key`).
std::vector<GridStep> centred_steps(const Grid& sides, const std::string& key = "kernel");
std::vector<GridStep> past_steps(const Grid& sides);

struct MultiTokenInput {
  torch::Tensor q, k;  // [B,H,N,D]
  torch::Tensor v;     // [B,H,N,Dv]
  TokenLayout layout;
  ScoreMixing before, after;  // the softmax
  torch::Tensor key_valid;    // [B,N] bool; the rows of other keys may hold NaN
  double scale = 0;           // 0: 1/sqrt(D)
};

/// lse: of S' over the visible keys; undefined from multi_token_wide.h. Errors: kUsage (shapes that
/// do not fit, both printed; a masked layout).
AttentionOutput multi_token_attention(const MultiTokenInput& input);
/// The definition.
AttentionOutput multi_token_attention_reference(const MultiTokenInput& input);

/// Causal ranks [N] int64 on the CPU: token i sees token j if rank j <= rank i. Undefined: all see
/// all.
torch::Tensor token_ranks(const TokenLayout& layout);
/// The token one step back: int64 [N] on the CPU, token i minus `step`, N where there is none.
torch::Tensor stepped_back(const TokenLayout& layout, const GridStep& step);

}  // namespace sigma
