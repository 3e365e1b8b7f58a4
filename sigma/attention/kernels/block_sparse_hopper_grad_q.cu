// grad_q of block-sparse attention on Hopper, D 128: a CTA, one warpgroup, has one chunk of 64 rows
// and walks its pieces. D 64: block_sparse_hopper_grad_q_64.cu.
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
//   registers of a thread:  Q 32, dO 32, dQ 64, S 32, dP 32, dS 16
#include "sigma/attention/kernels/block_sparse_hopper_grad_queries.h"

namespace sigma::kernels {
namespace {

using namespace hopper;

constexpr float kLog2e = 1.4426950408889634f;
constexpr int kWindow = 256;  // entries of the walk in shared memory, entry e at e % kWindow

constexpr int D = 128;

struct Shared {
  static constexpr int kTile = 64 * D * 2;  // bytes
  static constexpr int kStages = 3;
  // 2 tiles a stage: K, V (first of all, in stage 0: Q, dO).
  alignas(1024) unsigned char tile[kStages][2][kTile];
  uint64_t chose[kWindow];  // which tokens chose it
  int32_t piece[kWindow];   // perhaps | kMasked
  int32_t key[kWindow];     // its first key
  ChunkRows rows;
  alignas(16) uint64_t full[kStages];
};

template <class T>
__global__ void __launch_bounds__(128, 2)
    grad_q_kernel(const __grid_constant__ BlockSparseGpu a, const __grid_constant__ BlockWalk w,
                  const float2* stats, const __grid_constant__ ChunkMaps map) {
  extern __shared__ unsigned char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory);
  constexpr int kStages = Shared::kStages;
  const ChunkPlace at = chunk_place(a, w);
  const int64_t bg = at.bg, walk = at.walk;
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
    barrier_expect(&s.full[stage], 2 * Shared::kTile);
    tma_load_tile<D>(s.tile[stage][0], &map.k, &s.full[stage], s.key[e % kWindow], int(bg));
    tma_load_tile<D>(s.tile[stage][1], &map.v, &s.full[stage], s.key[e % kWindow], int(bg));
  };

  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) barrier_init(&s.full[i], 1);
    barrier_init_fence();
    const int row = w.q_first[at.chunk];
    barrier_expect(&s.full[0], w.tokens * w.heads * D * 2 * 2);
    tma_load_tile<D>(s.tile[0][0], &map.q, &s.full[0], row, int(at.bh));
    tma_load_tile<D>(s.tile[0][1], &map.grad_out, &s.full[0], row, int(at.bh));
  }
  read_walk(threadIdx.x);
  read_walk(threadIdx.x + 128);
  if (threadIdx.x < 64) read_rows(s.rows, a, w, stats, at);
  __syncthreads();
  if (warp == 0 && elect())
    for (int e = 0; e + 1 < kStages; ++e) fetch(e);
  uint32_t q[D / 16][4], grad_out[D / 16][4];
  barrier_wait(&s.full[0], 0);
#pragma unroll
  for (int i = 0; i < D / 16; ++i) {
    load_operand(q[i], tile(0, 0), i);
    load_operand(grad_out[i], tile(0, 1), i);
  }
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
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < D / 16; ++i) wgmma<T>(p, q[i], k_major(tile(stage, 0), i), i > 0);
    wgmma_commit();
#pragma unroll
    for (int i = 0; i < D / 16; ++i) wgmma<T>(dp, grad_out[i], k_major(tile(stage, 1), i), i > 0);
    wgmma_commit();
    wgmma_wait<1>();  // S, and dQ of the entry before
    pin(p), pin(dq);
    __syncthreads();  // so that one's stage is free
    if (warp == 0 && e > 0 && elect()) fetch(e - 1 + kStages);
    if (e % 128 == 0 && e > 0) read_walk(e + 128 + threadIdx.x);
    const uint64_t chose = s.chose[e % kWindow];
    const float2 row0 = s.rows.stats[r], row1 = s.rows.stats[r + 8];
    const float lse0 = chose >> token0 & 1 ? row0.x : INFINITY;
    const float lse1 = chose >> token1 & 1 ? row1.x : INFINITY;
#pragma unroll
    for (int i = 0; i < 32; ++i) p[i] = exp2_fast(fmaf(p[i], by, i % 4 < 2 ? -lse0 : -lse1));
    const int piece = s.piece[e % kWindow];
    if (piece & kMasked) hide(p, s.rows, r, a, w, bg / w.G, piece & ~kMasked);
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
    if (++stage == kStages) stage = 0, ++round;
  }
  wgmma_wait<0>();
  pin(dq);
  store_grad_q<T>(a, s.rows, r, at.bh, dq);
}

template <class T>
cudaError_t launch(const BlockSparseGpu& a, const BlockWalk& w, const GradWork& work,
                   cudaStream_t stream) {
  ChunkMaps map;
  cudaError_t error = chunk_maps(&map, a, w);
  const auto kernel = grad_q_kernel<T>;
  const int bytes = sizeof(Shared);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const int64_t ctas = a.B * a.H / w.heads * w.C;
  kernel<<<unsigned(ctas), 128, bytes, stream>>>(a, w, work.stats, map);
  return cudaGetLastError();
}

}  // namespace

cudaError_t block_sparse_hopper_grad_q(const BlockSparseGpu& a, const BlockWalk& w,
                                       const GradWork& work, cudaStream_t stream) {
  if (a.B * a.H * w.C == 0) return cudaSuccess;
  if (a.D != a.Dv) return cudaErrorInvalidValue;
  if (a.D == 64) return block_sparse_hopper_grad_q_64(a, w, work, stream);
  if (a.D == 128)
    return a.half ? launch<__half>(a, w, work, stream) : launch<__nv_bfloat16>(a, w, work, stream);
  return cudaErrorInvalidValue;
}

}  // namespace sigma::kernels
