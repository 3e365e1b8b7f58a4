// What stands between linear maps, which make and take rows of tokens, and block-sparse attention,
// which takes packed heads (block_plan.h). Plain torch is the definition; on an NVIDIA GPU both are
// one kernel each way (kernels/packed_heads.h).
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <vector>

#include "sigma/nn/rope.h"

namespace sigma {

/// Heads of every row that belong together, and who reads them: turned by the rotary embedding, where
/// there is one, or not. A kernel then sums the gradients of all readers.
struct HeadsPart {
  int64_t heads = 0;
  std::vector<bool> turned;
};

struct PackInput {
  torch::Tensor rows;  // [B,N,C] in the order of tokens: the parts' heads, then other columns
  int64_t head_dim = 0;
  std::vector<HeadsPart> parts;
  torch::Tensor order;         // [N] int64: packed row -> token
  const Rope* rope = nullptr;  // of the tokens
  /// Columns of all parts.
  int64_t width() const;
};

struct PackedHeads {
  /// [B,heads,N,D], a part's readers after the other's; equal ones share their memory.
  std::vector<torch::Tensor> heads;
  torch::Tensor rest;  // [B,N,C - width] the other columns
};

PackedHeads pack_heads(const PackInput& input);
/// The definition.
PackedHeads pack_heads_reference(const PackInput& input);

struct GatedSumInput {
  std::vector<torch::Tensor> branches;  // [B,H,Ng,D], packed grid tokens
  torch::Tensor gates;                  // [B,N,H * branches] before the sigmoid, in order of tokens
  torch::Tensor beside;                 // [B,H,N-Ng,D] the tokens beside the grid; undefined: none
  torch::Tensor order, inverse;         // [N] packed row -> token, and back
};

/// sum_i sigmoid(gate_i) branch_i, and the tokens beside the grid as they are, as rows in the order of
/// tokens [B,N,H*D].
torch::Tensor gated_sum(const GatedSumInput& input);
/// The definition.
torch::Tensor gated_sum_reference(const GatedSumInput& input);

/// The kernels on an NVIDIA GPU; false: they do not take `input` (float64, rows that are not aligned
/// to 16 bytes, angles with a gradient or not one row a token, more parts or readers than the layer
/// has), or a build without CUDA.
bool pack_heads_gpu(const PackInput& input, PackedHeads& out);
bool gated_sum_gpu(const GatedSumInput& input, torch::Tensor& out);

}  // namespace sigma
