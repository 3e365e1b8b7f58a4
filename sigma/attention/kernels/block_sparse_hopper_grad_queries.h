// What both kernels of grad_q share: a chunk's 64 rows, the element masks, and the end.
#pragma once

#include "sigma/attention/kernels/block_sparse_hopper_grad.h"
#include "sigma/attention/kernels/hopper.h"

namespace sigma::kernels::hopper {

// Which walk a CTA has. Chunks from the last to the first: under causal lists, the longest walks
// first.
struct ChunkPlace {
  int64_t chunk, bg, walk, bh;  // bg = b G + g; bh = b H + the first of the chunk's heads
};
__device__ inline ChunkPlace chunk_place(const BlockSparseGpu& a, const BlockWalk& w) {
  const int64_t chunk = w.C - 1 - blockIdx.x % w.C, tile_of_heads = blockIdx.x / w.C;
  const int M = int(a.H / a.G), tiles = M / w.heads;
  const int64_t bg = tile_of_heads / tiles;
  return {chunk, bg, bg * w.C + chunk, bg * M + tile_of_heads % tiles * w.heads};
}

struct ChunkRows {
  float2 stats[64];  // lse log2 e, delta
  int32_t rank[64];
  int32_t row[64];  // head Nq + query; -1: none
};

// By the first 64 threads.
__device__ inline void read_rows(ChunkRows& rows, const BlockSparseGpu& a, const BlockWalk& w,
                                 const float2* stats, const ChunkPlace& at) {
  const int head = threadIdx.x / w.tokens, token = threadIdx.x % w.tokens;
  const int query = w.q_first[at.chunk] + token;
  const bool real = head < w.heads && query < w.q_first[at.chunk + 1];
  const int row = real ? head * int(a.Nq) + query : -1;
  rows.row[threadIdx.x] = row;
  rows.stats[threadIdx.x] = real ? stats[at.bh * a.Nq + row] : make_float2(INFINITY, 0);
  rows.rank[threadIdx.x] = real && a.rank_q ? a.rank_q[query] : 0;
}

// P of the pairs that the element masks hide becomes 0. Rows r and r + 8 of the chunk.
__device__ inline void hide(float (&p)[32], const ChunkRows& rows, int r, const BlockSparseGpu& a,
                            const BlockWalk& w, int64_t b, int piece) {
  const int first = w.key_first[piece], size = w.key_first[piece + 1] - first;
  const int32_t rank0 = rows.rank[r], rank1 = rows.rank[r + 8];
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int col = i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2;
    bool see0 = col < size && (!a.key_valid || a.key_valid[b * a.Nk + first + col]);
    bool see1 = see0;
    if (see0 && a.rank_k) {
      const int32_t rank = a.rank_k[first + col];
      see0 = rank <= rank0 && (a.window <= 0 || rank0 - rank < a.window);
      see1 = rank <= rank1 && (a.window <= 0 || rank1 - rank < a.window);
    }
    if (!see0) p[i / 2 * 4 + i % 2] = 0;
    if (!see1) p[i / 2 * 4 + 2 + i % 2] = 0;
  }
}

template <class T, int n>
__device__ inline void store_grad_q(const BlockSparseGpu& a, const ChunkRows& rows, int r,
                                    int64_t bh, const float (&dq)[n]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = rows.row[r + half * 8];
    if (row < 0) continue;
    uint32_t* to = static_cast<uint32_t*>(a.grad_q) + (bh * a.Nq + row) * n + threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < n / 4; ++j)
      to[j * 4] = pack(T(), dq[j * 4 + half * 2] * a.scale, dq[j * 4 + half * 2 + 1] * a.scale);
  }
}

// The maps of Q, grad_out (a chunk's rows a box), K and V (a piece).
struct ChunkMaps {
  CUtensorMap q, grad_out, k, v;
};
inline cudaError_t chunk_maps(ChunkMaps* m, const BlockSparseGpu& a, const BlockWalk& w) {
  const int64_t heads = a.B * a.H, groups = a.B * a.G;
  cudaError_t error = tensor_map(&m->q, a.q, a.half, a.D, a.Nq, heads, w.tokens, w.heads);
  if (error == cudaSuccess)
    error = tensor_map(&m->grad_out, a.grad_out, a.half, a.D, a.Nq, heads, w.tokens, w.heads);
  if (error == cudaSuccess) error = tensor_map(&m->k, a.k, a.half, a.D, a.Nk, groups, kPiece, 1);
  if (error == cudaSuccess) error = tensor_map(&m->v, a.v, a.half, a.D, a.Nk, groups, kPiece, 1);
  return error;
}

}  // namespace sigma::kernels::hopper
