// What the two Hopper forward kernels share: the online softmax on the fragments of one warpgroup.
//
// A warpgroup owns the 64 rows of a chunk: row = head * tokens + token. Per piece of up to 64 keys,
// with c = scale * log2(e) (not negative) and per row a reference m and a sum l,
//
//     S = Q K^T             64 x 64 scores, float32, Q in registers as operand A
//     p = 2^(c (S - m))     rounded once to the inputs' type
//     O = O + p V,  l = l + sum p
//
// m need not be the largest score so far: any m gives the same O / l. It is raised, and O and l
// rescaled, only where a score passes it by 2^12 (p stays within float16), which is rare after the
// first pieces. A thread holds columns 8j + 2 (lane % 4) + {0, 1} of two rows, 8 apart.
#pragma once

#include <math_constants.h>

#include "sigma/attention/kernels/block_sparse_hopper.h"
#include "sigma/attention/kernels/hopper.h"

namespace sigma::kernels::hopper {

constexpr float kLow = -1e30f;  // m before a row has seen a key: below every score

struct ForwardParams {
  CUtensorMap q, k, v;
  BlockSparseGpu a;
  BlockWalk w;
  int head_tiles;       // (H / G) / heads
  float c;              // scale * log2(e)
  float slack;          // 12 / c
  bool either = false;  // two kernels are launched, and `alike` says which of them runs
  // Strips of `strip` chunks, `strips` of a (b, g), that go by pieces (block_sparse_hopper_pairs.h):
  // not 0. Null: none does.
  const int32_t* by_pieces = nullptr;
  int strip = 1, strips = 0;
  __device__ bool skips(int bg, int chunk) const {
    return by_pieces && by_pieces[bg * strips + chunk / strip] != 0;
  }
};

// Token rows: is a visit worth a product for all tokens of the chunk? Where two of them or more
// chose it on average, by 32 visits here and there in the walks. A warp calls it.
__device__ inline bool alike(const BlockWalk& w) {
  const int64_t walk = (2 * (threadIdx.x % 32) + 1) * (w.B * w.G * w.C) / 64;
  const int count = w.count[walk];
  const int tokens = count > 0 ? __popcll(w.chose[walk * w.cap + count / 2]) : 2;
  return __reduce_add_sync(~0u, tokens) >= 2 * 32;
}

constexpr int kChunksACta = 3;  // of the kernel that shares loads; strips are multiples

inline cudaError_t forward_params(ForwardParams& p, const BlockSparseGpu& a, const BlockWalk& w) {
  p.a = a;
  p.w = w;
  p.head_tiles = int(a.H / a.G / w.heads);
  p.c = a.scale * 1.4426950408889634f;
  p.slack = 12 / p.c;
  cudaError_t error = tensor_map(&p.q, a.q, a.half, a.D, a.Nq, a.B * a.H, w.tokens, w.heads);
  if (a.Nk == 0) p.k = p.v = p.q;  // never read
  if (error == cudaSuccess && a.Nk > 0)
    error = tensor_map(&p.k, a.k, a.half, a.D, a.Nk, a.B * a.G, kPiece, 1);
  if (error == cudaSuccess && a.Nk > 0)
    error = tensor_map(&p.v, a.v, a.half, a.D, a.Nk, a.B * a.G, kPiece, 1);
  return error;
}

// D 128, three chunks a CTA (block_sparse_hopper_forward_shared.cu); p.either: only if `alike`.
cudaError_t forward_shared(const ForwardParams& p, cudaStream_t stream);
// D 128, token rows, a warp a token (block_sparse_hopper_tokens_forward.cu); p.either: only if not.
cudaError_t forward_tokens(const ForwardParams& p, cudaStream_t stream);

// An entry of a walk: its keys first .. end - 1, end perhaps | kMasked, and the tokens that chose it.
struct Entry {
  int first, end;
  uint64_t chosen;
};
__device__ inline Entry entry_at(const BlockWalk& w, int64_t at) {
  const int piece = w.piece[at] & ~kMasked;
  return {w.key_first[piece], w.key_first[piece + 1] | (w.piece[at] & kMasked),
          w.chose ? w.chose[at] : ~uint64_t(0)};
}

// The rank of a chunk's token; of its last one behind the end.
__device__ inline int rank_of(const ForwardParams& p, int chunk, int token) {
  const int query = min(p.w.q_first[chunk] + token, p.w.q_first[chunk + 1] - 1);
  return p.a.rank_q ? p.a.rank_q[query] : 0;
}

// Issues S = Q K^T: Q's first `held` steps of 16 columns in registers, the others among its last 64
// columns, which lie in shared memory at `rest`.
template <class T, int D, int held>
__device__ inline void scores(float (&s)[32], const uint32_t (&q)[held][4], const void* rest,
                              const void* keys) {
  const uint32_t k = shared_address(keys);
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < D / 16; ++i)
    if (i < held) wgmma<T>(s, q[i], k_major(k, i), i > 0);
    else wgmma<T>(s, k_major(shared_address(rest), i % 4), k_major(k, i), i > 0);
  wgmma_commit();
}

// Issues O += P V.
template <class T, int n>
__device__ inline void add_values(float (&o)[n], const uint32_t (&a)[4][4], const void* values) {
  const uint32_t v = shared_address(values);
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < 4; ++i) wgmma<T, true>(o, a[i], mn_major(v, i));
  wgmma_commit();
}

// The token of a row of the chunk. Rows behind the last head hold anything: they get bit 63 of
// `chosen`, which no token has there, so that they do not move the other rows' references.
__device__ inline int token_of(const BlockWalk& w, int row) {
  return row < w.tokens * w.heads ? row % w.tokens : 63;
}

// Scores of hidden pairs become -inf. s: of keys `first` on, the piece's last is end - 1; rank0 and
// rank1 are those of the thread's rows, better in shared memory: registers are scarce.
template <int n>
__device__ inline void hide(float (&s)[n], const ForwardParams& p, int b, int first, int end,
                            const int& rank0, const int& rank1) {
  // One bit a column, of the thread's first row and (16 higher) its second: few registers.
  uint32_t seen = 0;
#pragma unroll 1
  for (int j = 0; j < n / 2; ++j) {
    const int key = first + j / 2 * 8 + threadIdx.x % 4 * 2 + j % 2;
    if (key >= end || (p.a.key_valid && !p.a.key_valid[int64_t(b) * p.a.Nk + key])) continue;
    const int rank = p.a.rank_q ? p.a.rank_k[key] : 0;
    const uint32_t window = p.a.rank_q && p.a.window > 0 ? p.a.window : 1u << 31;
    seen |= uint32_t(uint32_t(rank0 - rank) < window) << j;
    seen |= uint32_t(uint32_t(rank1 - rank) < window) << (j + 16);
  }
#pragma unroll
  for (int i = 0; i < n; ++i)
    if (!(seen >> (i / 4 * 2 + i % 2 + i / 2 % 2 * 16) & 1)) s[i] = -CUDART_INF_F;
}

// The largest of a thread's scores of a row, as a tree: short chains.
template <int n>
__device__ inline float largest(const float (&s)[n], int row) {
  float top[n / 8];
#pragma unroll
  for (int i = 0; i < n / 8; ++i) {
    const float* x = s + 8 * i + 2 * row;
    top[i] = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[4], x[5]));
  }
#pragma unroll
  for (int apart = n / 16; apart > 0; apart /= 2) {
#pragma unroll
    for (int i = 0; i < apart; ++i) top[i] = fmaxf(top[i], top[i + apart]);
  }
  return top[0];
}

// From S the weights p as operand A (a[i]: columns 16i .. 16i + 15), in place of S; O, m, l follow.
// l is the sum of this thread's columns alone. Rows that did not choose the piece get p = 0.
template <class T, int n, int steps>
__device__ inline void weights(uint32_t (&a)[steps][4], float (&s)[8 * steps], float (&o)[n],
                               float& m0, float& m1, float& l0, float& l1, bool chose0, bool chose1,
                               const ForwardParams& p) {
  // Each thread looks at its own columns; the row's four lanes meet only where one raises m.
  float top0 = largest(s, 0), top1 = largest(s, 1);
  if (__any_sync(~0u, (chose0 && top0 > m0 + p.slack) || (chose1 && top1 > m1 + p.slack))) {
#pragma unroll
    for (int apart = 1; apart < 3; ++apart) {
      top0 = fmaxf(top0, __shfl_xor_sync(~0u, top0, apart));
      top1 = fmaxf(top1, __shfl_xor_sync(~0u, top1, apart));
    }
    const float now0 = chose0 ? fmaxf(m0, top0) : m0, now1 = chose1 ? fmaxf(m1, top1) : m1;
    const float by0 = exp2_fast((m0 - now0) * p.c), by1 = exp2_fast((m1 - now1) * p.c);
    m0 = now0, m1 = now1;
    l0 *= by0, l1 *= by1;
#pragma unroll
    for (int i = 0; i < n; ++i) o[i] *= i / 2 % 2 ? by1 : by0;
  }
  const float shift0 = chose0 ? m0 * p.c : CUDART_INF_F;
  const float shift1 = chose1 ? m1 * p.c : CUDART_INF_F;
#pragma unroll
  for (int step = 0; step < steps; ++step) {
    float* x = s + 8 * step;
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = exp2_fast(fmaf(x[i], p.c, -(i / 2 % 2 ? shift1 : shift0)));
    pack_operand<T>(a[step], s, step);
    l0 += (x[0] + x[1]) + (x[4] + x[5]);
    l1 += (x[2] + x[3]) + (x[6] + x[7]);
  }
}

// out = O / l, lse = m scale + ln l, of the thread's rows row0 and row1 of the chunk, where they
// are queries q_first .. q_end - 1 of `heads` heads.
template <class T, int n>
__device__ inline void store_rows(const ForwardParams& p, const float (&o)[n], float m0, float m1,
                                  float l0, float l1, int row0, int row1, int first_head,
                                  int q_first, int q_end) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float l = r ? l1 : l0;  // the row's four lanes add up their sums
    l += __shfl_xor_sync(~0u, l, 1);
    l += __shfl_xor_sync(~0u, l, 2);
    const int row = r ? row1 : row0, h = row / p.w.tokens, query = q_first + row % p.w.tokens;
    if (h >= p.w.heads || query >= q_end) continue;
    const int64_t at = int64_t(first_head + h) * p.a.Nq + query;
    const float by = l > 0 ? 1 / l : 0;
    if (lane % 4 == 0) p.a.lse[at] = l > 0 ? (r ? m1 : m0) * p.a.scale + logf(l) : -CUDART_INF_F;
    uint32_t* out = static_cast<uint32_t*>(p.a.out) + at * n + lane % 4;
#pragma unroll
    for (int j = 0; j < n / 4; ++j)
      out[4 * j] = pack(T(), o[4 * j + 2 * r] * by, o[4 * j + 2 * r + 1] * by);
  }
}

}  // namespace sigma::kernels::hopper
