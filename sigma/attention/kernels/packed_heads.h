// Rows of tokens to packed heads (block_plan.h), turned by rotary embeddings, and back as a sum of
// branches with gates: what stands between linear maps and block-sparse attention. Torch-free; all
// pointers are device memory, tensors contiguous but for the strides named.
//
//   pack       part[b,h,i] = R rows[b, order[i], first + h]     R: rotation of the token, or none
//   gated sum  rows[b, order[i], h] = sum_j sigmoid(gates[b, order[i], h, j]) branch_j[b,h,i]
//
// Memory's work: every element is read and written once, 16 bytes a thread. Computed in float32,
// rounded once; every sum has a fixed order. Nothing is allocated, the host does not wait.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace sigma::kernels {

enum class HeadsType : int32_t { kFloat32, kFloat16, kBfloat16 };

constexpr int kMaxParts = 7;
constexpr int kMaxReaders = 3;
constexpr int kMaxBranches = 3;

/// Heads of a row that belong together. Tensors [B,heads,N,D].
struct PackedPart {
  int32_t first = 0, heads = 0;
  void* plain = nullptr;  // forward: null where nobody reads it
  void* turned = nullptr;
  const void* grad[kMaxReaders] = {};  // backward, of each reader; null: none
  bool turns[kMaxReaders] = {};        // whether it read what is turned
};

/// D is a multiple of 16 bytes; rows start at multiples of 16 bytes.
struct PackHeads {
  HeadsType type = HeadsType::kBfloat16;
  int64_t B = 0, N = 0, D = 0;
  void* rows = nullptr;  // [B,N,heads * D and more] with these strides, in elements
  int64_t batch_stride = 0, row_stride = 0;
  const int64_t* order = nullptr;  // [N]
  const float* cos = nullptr;      // [N,pairs] of tokens
  const float* sin = nullptr;
  int32_t pairs = 0;
  bool interleaved = true;  // channels 2k, 2k + 1; else k, k + pairs
  int32_t parts = 0;
  PackedPart part[kMaxParts];
};

/// Writes the parts.
cudaError_t pack_heads(const PackHeads& a, cudaStream_t stream);
/// Writes the parts' heads of rows: the sum of the readers' gradients, turned back.
cudaError_t pack_heads_grad(const PackHeads& a, cudaStream_t stream);

/// D and pointers as above. The packed rows from Ng on are those of `beside`, which has no gates.
struct GatedSum {
  HeadsType type = HeadsType::kBfloat16;
  int64_t B = 0, H = 0, N = 0, Ng = 0, D = 0;
  const int64_t* order = nullptr;  // [N]
  int32_t branches = 0;
  const void* branch[kMaxBranches] = {};  // [B,H,Ng,D]
  const void* beside = nullptr;           // [B,H,N-Ng,D]
  const void* gates = nullptr;            // [B,N,H,branches]
  void* rows = nullptr;                   // [B,N,H,D]

  // Backward: `rows` is the gradient, branches and gates are read.
  void* grad_branch[kMaxBranches] = {};
  void* grad_beside = nullptr;
  void* grad_gates = nullptr;
};

cudaError_t gated_sum(const GatedSum& a, cudaStream_t stream);
cudaError_t gated_sum_grad(const GatedSum& a, cudaStream_t stream);

}  // namespace sigma::kernels
