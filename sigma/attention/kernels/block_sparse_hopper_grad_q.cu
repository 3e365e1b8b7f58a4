// grad_q of block-sparse attention on Hopper: a CTA, one warpgroup, has one chunk of 64 rows and
// walks its pieces.
//
//   S = Q K^T   dP = dO V^T   P = exp2(scale log2e S - lse log2e)   dS = P o (dP - delta)
//   dQ += dS K,   and in the end times scale
//
// Q and dO stay in registers as operands A; K and V come through a ring of stages. dS goes from the
// accumulators' registers straight into those of an operand A (hopper.h). K is read both ways:
// K-major for S, MN-major for dQ.
//
// In time, of one CTA (others share the multiprocessor: their matrix products fill the gaps):
//
//     tensor cores   S1, dP1            | dQ1, S2, dP2           | dQ2, S3, dP3 ...
//     registers           | exp, dS1    |        | exp, dS2      |
//
//   registers of a thread at D 128:  Q 32, dO 32, dQ 64, S 32, dP 32, dS 16
#include "sigma/attention/kernels/block_sparse_hopper_grad.h"
#include "sigma/attention/kernels/hopper.h"

namespace sigma::kernels {
namespace {

using namespace hopper;

constexpr float kLog2e = 1.4426950408889634f;
constexpr int kWindow = 256;  // entries of the walk in shared memory, entry e at e % kWindow

#ifndef Q64
#define Q64 3
#endif
// CTAs of a multiprocessor. Does the product dQ run on into the next entry? That takes registers.
template <int D>
constexpr int kCtas = D == 128 ? 2 : Q64;
template <int D>
constexpr bool kRunOn = kCtas<D> == 2;

template <int D>
struct Shared {
  static constexpr int kTile = 64 * D * 2;  // bytes
  static constexpr int kStages = D == 128 ? 3 : kCtas<D> == 2 ? 6 : 4;
  // 2 tiles a stage: K, V (first of all, in stage 0: Q, dO).
  alignas(1024) unsigned char tile[kStages][2][kTile];
  uint64_t chose[kWindow];  // which tokens chose it
  int32_t piece[kWindow];   // perhaps | kMasked
  int32_t key[kWindow];     // its first key
  float2 stats[64];         // of the rows: lse log2 e, delta
  int32_t rank[64];
  int32_t row[64];  // head Nq + query; -1: none
  alignas(16) uint64_t full[kStages];
};

// P of the pairs that the element masks hide becomes 0. Rows r and r + 8 of the chunk.
template <int D>
__device__ void hide(float (&p)[32], const Shared<D>& s, int r, const BlockSparseGpu& a,
                     const BlockWalk& w, int64_t b, int piece) {
  const int first = w.key_first[piece], size = w.key_first[piece + 1] - first;
  const int32_t rank0 = s.rank[r], rank1 = s.rank[r + 8];
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

template <class T, int D>
__global__ void __launch_bounds__(128, kCtas<D>)
    grad_q_kernel(const __grid_constant__ BlockSparseGpu a, const __grid_constant__ BlockWalk w,
                  const float2* stats, const __grid_constant__ CUtensorMap q_map,
                  const __grid_constant__ CUtensorMap grad_out_map,
                  const __grid_constant__ CUtensorMap k_map,
                  const __grid_constant__ CUtensorMap v_map) {
  extern __shared__ unsigned char memory[];
  Shared<D>& s = *reinterpret_cast<Shared<D>*>(memory);
  constexpr int kStages = Shared<D>::kStages;
  // Chunks from the last to the first: under causal lists, the longest walks first.
  const int64_t chunk = w.C - 1 - blockIdx.x % w.C, tile_of_heads = blockIdx.x / w.C;
  const int M = int(a.H / a.G), tiles = M / w.heads;
  const int64_t bg = tile_of_heads / tiles, walk = bg * w.C + chunk;
  const int64_t bh = bg * M + tile_of_heads % tiles * w.heads;
  const int n = w.count[walk];
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);  // known to be the same in all lanes
  const int lane = threadIdx.x % 32, r = warp * 16 + lane / 4;

  const auto read_walk = [&](int e) {
    if (e >= n) return;
    const int32_t piece = w.piece[walk * w.cap + e];
    s.piece[e % kWindow] = piece;
    s.key[e % kWindow] = w.key_first[piece & ~kMasked];
    s.chose[e % kWindow] = w.chose ? w.chose[walk * w.cap + e] : ~0ull;
  };
  const auto tile = [&](int stage, int which) { return shared_address(s.tile[stage][which]); };
  // By one thread: entry e goes to stage (e + 1) % kStages.
  const auto fetch = [&](int e) {
    if (e >= n) return;
    const int stage = (e + 1) % kStages;
    barrier_expect(&s.full[stage], 2 * Shared<D>::kTile);
    tma_load_tile<D>(s.tile[stage][0], &k_map, &s.full[stage], s.key[e % kWindow], int(bg));
    tma_load_tile<D>(s.tile[stage][1], &v_map, &s.full[stage], s.key[e % kWindow], int(bg));
  };

  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) barrier_init(&s.full[i], 1);
    barrier_init_fence();
    const int row = w.q_first[chunk];
    barrier_expect(&s.full[0], w.tokens * w.heads * D * 2 * 2);
    tma_load_tile<D>(s.tile[0][0], &q_map, &s.full[0], row, int(bh));
    tma_load_tile<D>(s.tile[0][1], &grad_out_map, &s.full[0], row, int(bh));
  }
  read_walk(threadIdx.x);
  read_walk(threadIdx.x + 128);
  if (threadIdx.x < 64) {
    const int head = threadIdx.x / w.tokens, token = threadIdx.x % w.tokens;
    const int query = w.q_first[chunk] + token;
    const bool real = head < w.heads && query < w.q_first[chunk + 1];
    const int row = real ? head * int(a.Nq) + query : -1;
    s.row[threadIdx.x] = row;
    s.stats[threadIdx.x] = real ? stats[bh * a.Nq + row] : make_float2(INFINITY, 0);
    s.rank[threadIdx.x] = real && a.rank_q ? a.rank_q[query] : 0;
  }
  __syncthreads();
  if (warp == 0 && elect())
    for (int e = 0; e + 1 < kStages; ++e) fetch(e);
  uint32_t q[D / 16][4], grad_out[D / 16][4];
  // Where both kinds of products are 64 columns wide, the assembler (ptxas 13.0) gives dS registers
  // that Q or dO live in, though they are needed again. A load in the loop, whatever its condition,
  // keeps it from that.
  const auto load_rows = [&] {
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
      load_operand(q[i], tile(0, 0), i);
      load_operand(grad_out[i], tile(0, 1), i);
    }
  };
  barrier_wait(&s.full[0], 0);
  load_rows();
  fence_async();
  __syncthreads();
  if (warp == 0 && elect()) fetch(kStages - 1);

  const int token0 = r % w.tokens, token1 = (r + 8) % w.tokens;
  const float by = a.scale * kLog2e;
  float dq[D / 2] = {}, p[32] = {}, dp[32] = {};
  pin(dq), pin(p), pin(dp);
  for (int e = 0, stage = 1, round = 0; e < n; ++e) {
    barrier_wait(&s.full[stage], round & 1);
    pin(p), pin(dp);
    if (D == 64 && w.tokens == 0) load_rows();  // never; see below
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < D / 16; ++i) wgmma<T>(p, q[i], k_major(tile(stage, 0), i), i > 0);
    wgmma_commit();
#pragma unroll
    for (int i = 0; i < D / 16; ++i) wgmma<T>(dp, grad_out[i], k_major(tile(stage, 1), i), i > 0);
    wgmma_commit();
    if (kRunOn<D>) {
      wgmma_wait<1>();  // S, and dQ of the entry before
      pin(p), pin(dq);
    }
    __syncthreads();  // so that one's stage is free
    if (warp == 0 && e > 0 && elect()) fetch(e - 1 + kStages);
    if (e % 128 == 0 && e > 0) read_walk(e + 128 + threadIdx.x);
    const uint64_t chose = s.chose[e % kWindow];
    wgmma_wait<1>();
    pin(p);
    const float2 row0 = s.stats[r], row1 = s.stats[r + 8];
    const float lse0 = chose >> token0 & 1 ? row0.x : INFINITY;
    const float lse1 = chose >> token1 & 1 ? row1.x : INFINITY;
#pragma unroll
    for (int i = 0; i < 32; ++i) p[i] = exp2_fast(fmaf(p[i], by, i % 4 < 2 ? -lse0 : -lse1));
    const int piece = s.piece[e % kWindow];
    if (piece & kMasked) hide(p, s, r, a, w, bg / w.G, piece & ~kMasked);
    wgmma_wait<0>();
    pin(dp);
    uint32_t ds[4][4];
#pragma unroll
    for (int i = 0; i < 32; ++i) p[i] *= dp[i] - (i % 4 < 2 ? row0.y : row1.y);
#pragma unroll
    for (int i = 0; i < 4; ++i) pack_operand<T>(ds[i], p, i), pin(ds[i]);
    pin(dq);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; ++i) wgmma<T, true>(dq, ds[i], mn_major(tile(stage, 0), i));
    wgmma_commit();
    if (!kRunOn<D>) {
      wgmma_wait<0>();
      pin(dq);
    }
    if (++stage == kStages) stage = 0, ++round;
  }
  wgmma_wait<0>();
  pin(dq);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = s.row[r + half * 8];
    if (row < 0) continue;
    uint32_t* to = static_cast<uint32_t*>(a.grad_q) + (bh * a.Nq + row) * (D / 2) + lane % 4;
#pragma unroll
    for (int j = 0; j < D / 8; ++j)
      to[j * 4] = pack(T(), dq[j * 4 + half * 2] * a.scale, dq[j * 4 + half * 2 + 1] * a.scale);
  }
}

template <class T, int D>
cudaError_t launch(const BlockSparseGpu& a, const BlockWalk& w, const GradWork& work,
                   cudaStream_t stream) {
  CUtensorMap q, grad_out, k, v;
  cudaError_t error = tensor_map(&q, a.q, a.half, D, a.Nq, a.B * a.H, w.tokens, w.heads);
  if (error == cudaSuccess)
    error = tensor_map(&grad_out, a.grad_out, a.half, D, a.Nq, a.B * a.H, w.tokens, w.heads);
  if (error == cudaSuccess) error = tensor_map(&k, a.k, a.half, D, a.Nk, a.B * a.G, 64, 1);
  if (error == cudaSuccess) error = tensor_map(&v, a.v, a.half, D, a.Nk, a.B * a.G, 64, 1);
  if (error != cudaSuccess) return error;
  const auto kernel = grad_q_kernel<T, D>;
  const int bytes = sizeof(Shared<D>);
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const int64_t ctas = a.B * a.H / w.heads * w.C;
  kernel<<<unsigned(ctas), 128, bytes, stream>>>(a, w, work.stats, q, grad_out, k, v);
  return cudaGetLastError();
}

}  // namespace

cudaError_t block_sparse_hopper_grad_q(const BlockSparseGpu& a, const BlockWalk& w,
                                       const GradWork& work, cudaStream_t stream) {
  if (a.B * a.H * w.C == 0) return cudaSuccess;
  if (a.D != a.Dv) return cudaErrorInvalidValue;
  if (a.D == 64)
    return a.half ? launch<__half, 64>(a, w, work, stream)
                  : launch<__nv_bfloat16, 64>(a, w, work, stream);
  if (a.D == 128)
    return a.half ? launch<__half, 128>(a, w, work, stream)
                  : launch<__nv_bfloat16, 128>(a, w, work, stream);
  return cudaErrorInvalidValue;
}

}  // namespace sigma::kernels
