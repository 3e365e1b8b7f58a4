// Block-sparse attention on any NVIDIA GPU since sm_80: the readable path. Torch-free. The walks:
// block_walk.h; the operator and its definition: sigma/attention/block_sparse.h.
//
//   S = scale Q K^T,  P = exp(S - m),  O = O exp(m_old - m) + P V,  lse = m + log rowsum(P)
//   backward, with P = exp(S - lse), dS = P (dO V^T - delta), delta = rowsum(dO O):
//     dQ = scale dS K             a chunk of queries a CTA, over its pieces of keys
//     dV = P^T dO, dK = scale dS^T Q      a piece of keys a CTA, over the chunks that visit it, or
//                                         over some of them: the sums of a piece's parts are merged
//
// A CTA is 4 warps; each owns 16 of the 64 rows and multiplies them with tiles in shared memory,
// while cp.async brings the next tile. Scores, statistics and sums are float; P and dS are rounded
// once to the input type. Every sum has a fixed order: the same input gives the same bits.
//
// D and Dv: multiples of 16, at most 256; bfloat16 or float16; pointers aligned to 16 bytes. Above
// 128 a CTA needs 96 KB (forward) and 129 KB (backward) of shared memory: the latter is there on
// sm_80 and sm_90, not on sm_86 and sm_89, where the launch returns an error. Rows of K and V whose
// key_valid is 0 are never read; all others must be finite. A chunk has at least one query.
//
// Not here: token rows multiply all rows of a chunk with a piece that one of them chose.
#pragma once

#include <cuda_runtime.h>

#include "sigma/attention/kernels/block_walk.h"

namespace sigma::kernels {

/// Writes out and lse, also of queries whose walk is empty (0 and -inf).
cudaError_t block_sparse_portable_forward(const BlockSparseGpu& a, const BlockWalk& walk,
                                          cudaStream_t stream);
/// How dK and dV are cut into parts; depends on sizes only.
struct PortableParts {
  int length = 0;         // entries of a walk's columns from cut to cut
  int cuts = 0;           // of each (b, g), at most
  int64_t floats = 0;     // of sums
  float* sums = nullptr;  // [B G cuts][2][2 (dK, dV)][64][width]: before and from the cut on
};
PortableParts block_sparse_portable_parts(const BlockSparseGpu& a, const BlockWalk& walk);

/// Writes delta (block_sparse_delta.h), grad_q, grad_k and grad_v.
cudaError_t block_sparse_portable_backward(const BlockSparseGpu& a, const BlockWalk& walk,
                                           const PortableParts& parts, cudaStream_t stream);

}  // namespace sigma::kernels
