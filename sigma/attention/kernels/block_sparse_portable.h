// Block-sparse attention on any NVIDIA GPU since sm_80: the readable path. Torch-free. The walks:
// block_walk.h; the operator and its definition: sigma/attention/block_sparse.h.
//
//   S = scale Q K^T,  P = exp(S - m),  O = O exp(m_old - m) + P V,  lse = m + log rowsum(P)
//   backward, with P = exp(S - lse), dS = P (dO V^T - delta), delta = rowsum(dO O):
//     dQ = scale dS K             a chunk of queries a CTA, over its pieces of keys
//     dV = P^T dO, dK = scale dS^T Q      a piece of keys a CTA, over the chunks that visit it
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
// Not here: one hot piece in all lists is one CTA's work in the backward; token rows multiply all
// rows of a chunk with a piece that one of them chose.
#pragma once

#include <cuda_runtime.h>

#include "sigma/attention/kernels/block_walk.h"

namespace sigma::kernels {

/// Writes out and lse, also of queries whose walk is empty (0 and -inf).
cudaError_t block_sparse_portable_forward(const BlockSparseGpu& a, const BlockWalk& walk,
                                          cudaStream_t stream);
/// Writes delta (block_sparse_delta.h), grad_q, grad_k and grad_v.
cudaError_t block_sparse_portable_backward(const BlockSparseGpu& a, const BlockWalk& walk,
                                           cudaStream_t stream);

}  // namespace sigma::kernels
