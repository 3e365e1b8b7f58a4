// The forward of block-sparse attention on Hopper.
//
// One warpgroup (128 threads) is one CTA and owns the 64 rows of a chunk: row = head * tokens +
// token. It walks the chunk's pieces of up to 64 keys with the online softmax: per piece, with
// c = scale * log2(e) and per row a reference m and a sum l,
//
//     S = Q K^T             64 x 64 scores, float32, Q in registers as operand A
//     p = 2^(c (S - m))     rounded once to the inputs' type
//     O = O + p V,  l = l + sum p
//
// m need not be the largest score so far: any m gives the same O / l. It is raised, and O and l
// rescaled, only where a score passes it by 2^8, which is rare after the first pieces.
//
// In time, of one CTA (three or more share an SM: while this one does its softmax, the tensor cores
// work for the others):
//
//     tensor cores   S0 |           | P0 V0, S1 |           | P1 V1, S2 | ...
//     registers         | softmax 0 |           | softmax 1 |
//     copy engine    K0 V0 K1 | K2, V1 ...      | V2, K3    | ...       into two slots of each
#include <math_constants.h>

#include "sigma/attention/kernels/block_sparse_hopper.h"
#include "sigma/attention/kernels/hopper.h"

namespace sigma::kernels {
namespace {

using namespace hopper;

struct Params {
  CUtensorMap q, k, v;
  BlockSparseGpu a;
  BlockWalk w;
  int head_tiles;  // (H / G) / heads
  float c;         // scale * log2(e)
  float slack;     // 8 / c
};

// Steps of 16 columns of Q in registers; there is no room for all 8 of D = 128.
template <int D>
constexpr int kHeld = D == 128 ? 7 : D / 16;

// What a CTA keeps in shared memory. Registers are scarce: the walk's state is here, too.
template <class T, int D>
struct Shared {
  T k[2][kPiece * D], v[2][kPiece * D];       // slots: entry e of the walk lies in slot e % 2
  T q[kHeld<D> < D / 16 ? kPiece * 64 : 64];  // the last 64 columns, for the steps not held
  uint64_t full_q, full_k[2], full_v[2], freed;
  // The walk's entries e, at e % 128: first key, end of keys (perhaps | kMasked), who chose it.
  int first[128], end[128];
  uint64_t chosen[128];
  int rank_q[64];  // by token
  int b, bg;
};

// Scores of hidden pairs become -inf. Columns of this thread: 8j + 2 (lane % 4) + {0, 1}.
template <class S>
__device__ inline void hide(float (&s)[32], const Params& p, const S& shared, int e, int token0,
                            int token1) {
  const int first = shared.first[e % 128], end = shared.end[e % 128] & ~kMasked;
  // One bit a column, of the thread's first row and (16 higher) its second: few registers.
  uint32_t seen = 0;
#pragma unroll 1
  for (int j = 0; j < 16; ++j) {
    const int key = first + j / 2 * 8 + threadIdx.x % 4 * 2 + j % 2;
    if (key >= end || (p.a.key_valid && !p.a.key_valid[int64_t(shared.b) * p.a.Nk + key])) continue;
    const int rank = p.a.rank_q ? p.a.rank_k[key] : 0;
    const uint32_t window = p.a.rank_q && p.a.window > 0 ? p.a.window : 1u << 31;
    seen |= uint32_t(uint32_t(shared.rank_q[token0] - rank) < window) << j;
    seen |= uint32_t(uint32_t(shared.rank_q[token1] - rank) < window) << (j + 16);
  }
#pragma unroll
  for (int i = 0; i < 32; ++i)
    if (!(seen >> (i / 4 * 2 + i % 2 + i / 2 % 2 * 16) & 1)) s[i] = -CUDART_INF_F;
}

template <class T, int D, int ctas>
__global__ void __launch_bounds__(128, ctas) forward_kernel(const __grid_constant__ Params p) {
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<Shared<T, D>*>(memory);
  const BlockWalk& w = p.w;
  const int lane = threadIdx.x % 32, warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  const int row = threadIdx.x / 32 * 16 + lane / 4;
  const int token0 = row % w.tokens, token1 = (row + 8) % w.tokens;  // of rows `row` and `row + 8`

  // The work of this CTA. One (b, g)'s chunks run together, so that its K and V stay in the L2
  // cache; late chunks first, whose walks are the longest if causal.
  const int C = int(w.C), chunk = C - 1 - int(blockIdx.x / p.head_tiles % C);
  const int bg = blockIdx.x / p.head_tiles / C;
  const int q_first = w.q_first[chunk];
  const int count = w.count[int64_t(bg) * C + chunk];
  const auto first_head = [&] {
    return bg * int(p.a.H / p.a.G) + int(blockIdx.x % p.head_tiles) * w.heads;
  };

  if (threadIdx.x < 64) {
    const int query = min(q_first + int(threadIdx.x), w.q_first[chunk + 1] - 1);
    shared.rank_q[threadIdx.x] = p.a.rank_q ? p.a.rank_q[query] : 0;
  }
  if (threadIdx.x == 0) {
    shared.bg = bg;
    shared.b = bg / int(w.G);
    barrier_init(&shared.full_q, 1);
    for (int i = 0; i < 2; ++i) barrier_init(&shared.full_k[i], 1);
    for (int i = 0; i < 2; ++i) barrier_init(&shared.full_v[i], 1);
    barrier_init(&shared.freed, 4);
    barrier_init_fence();
  }
  // The entries e0 + thread of the walk come into shared memory, two halves of 64 by turns.
  const auto fetch = [&](int e) {
    if (e >= count) return;
    const int64_t at = (int64_t(shared.bg) * C + chunk) * w.cap + e;
    const int piece = w.piece[at] & ~kMasked;
    shared.first[e % 128] = w.key_first[piece];
    shared.end[e % 128] = w.key_first[piece + 1] | (w.piece[at] & kMasked);
    shared.chosen[e % 128] = w.chose ? w.chose[at] : ~uint64_t(0);
  };
  __syncthreads();
  fetch(threadIdx.x);
  __syncthreads();

  // By one thread of warp 0: ask for K or V of an entry.
  const auto load_k = [&](int e) {
    if (e >= count) return;
    barrier_expect(&shared.full_k[e % 2], kPiece * D * 2);
    tma_load_tile<D>(shared.k[e % 2], &p.k, &shared.full_k[e % 2], shared.first[e % 128],
                     shared.bg);
  };
  const auto load_v = [&](int e) {
    if (e >= count) return;
    barrier_expect(&shared.full_v[e % 2], kPiece * D * 2);
    tma_load_tile<D>(shared.v[e % 2], &p.v, &shared.full_v[e % 2], shared.first[e % 128],
                     shared.bg);
  };
  // All four warps are done with slots: warp 0 may have them filled again. `turn` counts the calls.
  const auto freed = [&](int turn) {
    __syncwarp();
    if (lane == 0) barrier_arrive(&shared.freed);
    if (warp == 0) barrier_wait(&shared.freed, turn & 1);
  };

  // Q comes through the second slot of V. Rows behind the last of the chunk are not read, or not
  // stored: a row of A has no effect on the others.
  const int rows = w.tokens * w.heads;
  if (warp == 0 && elect()) {
    barrier_expect(&shared.full_q, rows * 2 * (D + (kHeld<D> < D / 16 ? 64 : 0)));
    tma_load_tile<D>(shared.v[1], &p.q, &shared.full_q, q_first, first_head());
    if (kHeld<D> < D / 16) tma_load(shared.q, &p.q, &shared.full_q, D - 64, q_first, first_head());
    load_k(0);
    load_v(0);
    load_k(1);
  }
  uint32_t q[kHeld<D>][4];
  barrier_wait(&shared.full_q, 0);
#pragma unroll
  for (int s = 0; s < kHeld<D>; ++s) load_operand(q[s], shared_address(shared.v[1]), s);
  fence_async();
  __syncthreads();
  if (warp == 0 && elect()) load_v(1);

  float o[D / 2], s[32], m0 = -CUDART_INF_F, m1 = m0, l0 = 0, l1 = 0;
#pragma unroll
  for (int i = 0; i < D / 2; ++i) o[i] = 0;

  const auto scores = [&](int e) {  // issue S of entry e
    barrier_wait(&shared.full_k[e % 2], e / 2 & 1);
    const uint32_t k = shared_address(shared.k[e % 2]);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < D / 16; ++i)
      if (i < kHeld<D>) wgmma<T>(s, q[i], k_major(k, i), i > 0);
      else wgmma<T>(s, k_major(shared_address(shared.q), i % 4), k_major(k, i), i > 0);
    wgmma_commit();
  };

  if (count > 0) {
    scores(0);
    wgmma_wait<0>();
    pin(s);
    freed(0);
    if (warp == 0 && elect()) load_k(2);
  }
#pragma unroll 1
  for (int e = 0; e < count; ++e) {
    if (e % 64 == 32 && e > 64 && threadIdx.x < 64) fetch(e + 32 + threadIdx.x);
    if (shared.end[e % 128] & kMasked) hide(s, p, shared, e, token0, token1);
    float top0 = s[0], top1 = s[2];
#pragma unroll
    for (int i = 0; i < 32; ++i) (i / 2 % 2 ? top1 : top0) = fmaxf(i / 2 % 2 ? top1 : top0, s[i]);
#pragma unroll
    for (int apart = 1; apart < 3; ++apart) {
      top0 = fmaxf(top0, __shfl_xor_sync(~0u, top0, apart));
      top1 = fmaxf(top1, __shfl_xor_sync(~0u, top1, apart));
    }
    const uint64_t chosen = shared.chosen[e % 128];
    if (!(chosen >> token0 & 1)) top0 = -CUDART_INF_F;
    if (!(chosen >> token1 & 1)) top1 = -CUDART_INF_F;
    if (__any_sync(~0u, top0 > m0 + p.slack || top1 > m1 + p.slack)) {
      const float now0 = fmaxf(m0, top0), now1 = fmaxf(m1, top1);
      const float by0 = now0 == m0 ? 1 : exp2_fast((m0 - now0) * p.c);  // m0 -inf: 0
      const float by1 = now1 == m1 ? 1 : exp2_fast((m1 - now1) * p.c);
      m0 = now0, m1 = now1;
      l0 *= by0, l1 *= by1;
#pragma unroll
      for (int i = 0; i < D / 2; ++i) o[i] *= i / 2 % 2 ? by1 : by0;
    }
    // A shift of +inf makes all p of a row 0: rows that see nothing here or did not choose it.
    const float shift0 = top0 > -CUDART_INF_F ? m0 * p.c : CUDART_INF_F;
    const float shift1 = top1 > -CUDART_INF_F ? m1 * p.c : CUDART_INF_F;
    uint32_t a[4][4];
#pragma unroll
    for (int step = 0; step < 4; ++step) {
#pragma unroll
      for (int i = 8 * step; i < 8 * step + 8; ++i) {
        s[i] = exp2_fast(fmaf(s[i], p.c, -(i / 2 % 2 ? shift1 : shift0)));
        (i / 2 % 2 ? l1 : l0) += s[i];
      }
      pack_operand<T>(a[step], s, step);
    }

    barrier_wait(&shared.full_v[e % 2], e / 2 & 1);
    const uint32_t v = shared_address(shared.v[e % 2]);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; ++i) wgmma<T, true>(o, a[i], mn_major(v, i));
    wgmma_commit();
    if (e + 1 < count) scores(e + 1);
    wgmma_wait<0>();
    pin(o);
    pin(s);
    freed(e + 1);
    if (warp == 0 && elect()) {
      load_v(e + 2);
      load_k(e + 3);
    }
  }

  // The row's four lanes add up their sums; out = O / l, lse = m scale + ln l.
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float l = r ? l1 : l0;
    l += __shfl_xor_sync(~0u, l, 1);
    l += __shfl_xor_sync(~0u, l, 2);
    const int h = (row + 8 * r) / w.tokens, query = q_first + (row + 8 * r) % w.tokens;
    if (h >= w.heads || query >= w.q_first[chunk + 1]) continue;
    const int64_t at = int64_t(first_head() + h) * p.a.Nq + query;
    const float by = l > 0 ? 1 / l : 0;
    if (lane % 4 == 0) p.a.lse[at] = l > 0 ? (r ? m1 : m0) * p.a.scale + logf(l) : -CUDART_INF_F;
    uint32_t* out = static_cast<uint32_t*>(p.a.out) + at * (D / 2) + lane % 4;
#pragma unroll
    for (int j = 0; j < D / 8; ++j)
      out[4 * j] = pack(T(), o[4 * j + 2 * r] * by, o[4 * j + 2 * r + 1] * by);
  }
}

template <class T, int D, int ctas>
cudaError_t launch(const BlockSparseGpu& a, const BlockWalk& w, cudaStream_t stream) {
  Params p;
  p.a = a;
  p.w = w;
  p.head_tiles = int(a.H / a.G / w.heads);
  p.c = a.scale * 1.4426950408889634f;
  p.slack = 8 / p.c;
  cudaError_t error = tensor_map(&p.q, a.q, a.half, D, a.Nq, a.B * a.H, w.tokens, w.heads);
  if (error == cudaSuccess) error = tensor_map(&p.k, a.k, a.half, D, a.Nk, a.B * a.G, kPiece, 1);
  if (error == cudaSuccess) error = tensor_map(&p.v, a.v, a.half, D, a.Nk, a.B * a.G, kPiece, 1);
  const auto kernel = forward_kernel<T, D, ctas>;
  const int bytes = sizeof(Shared<T, D>);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const int64_t items = a.B * a.G * w.C * p.head_tiles;
  if (items > 0) kernel<<<dim3(items), 128, bytes, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace

cudaError_t block_sparse_hopper_forward(const BlockSparseGpu& a, const BlockWalk& w,
                                        cudaStream_t stream) {
  if (a.D != a.Dv || (a.D != 64 && a.D != 128)) return cudaErrorInvalidValue;
  if (a.D == 64)
    return a.half ? launch<__half, 64, 4>(a, w, stream)
                  : launch<__nv_bfloat16, 64, 4>(a, w, stream);
  return a.half ? launch<__half, 128, 3>(a, w, stream)
                : launch<__nv_bfloat16, 128, 3>(a, w, stream);
}

}  // namespace sigma::kernels
