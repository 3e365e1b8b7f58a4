// grad_q of block-sparse attention on Hopper: a CTA has one chunk of 64 rows and walks its pieces.
//
//   S = Q K^T   dP = dO V^T   P = exp2(scale log2e S - lse log2e)   dS = P o (dP - delta)
//   dQ += dS K,   and in the end times scale
//
// Q and dO stay in registers as operands A. A producer warp brings K and V of the pieces through a
// ring of stages; a warpgroup multiplies. While it turns S into dS, the tensor cores work for the
// other CTA of the multiprocessor. dS goes from the accumulators' registers straight into those of
// an operand A (hopper.h), and K is read both ways: K-major for S, MN-major for dQ.
//
//   registers of a thread at D 128:  Q 32, dO 32, dQ 64, S 32, dP 32, dS 16
#include "sigma/attention/kernels/block_sparse_hopper_grad.h"
#include "sigma/attention/kernels/hopper.h"

namespace sigma::kernels {
namespace {

using namespace hopper;

constexpr float kLog2e = 1.4426950408889634f;

template <int D>
struct Shared {
  static constexpr int kTile = 64 * D * 2;  // bytes
  static constexpr int kStages = D == 128 ? 3 : 6;
  // The tiles, 2 a stage: K, V (in the first use of stage 0: Q, dO).
  alignas(1024) unsigned char tile[kStages][2][kTile];
  alignas(16) uint64_t full[kStages], empty[kStages];
  uint64_t chose[kStages];  // the stage's entry of the walk
  int32_t piece[kStages];
};

// Item 0 of the ring is Q and dO, item i > 0 the walk's entry i - 1.
template <int D>
__device__ void produce(Shared<D>& s, const CUtensorMap* q, const CUtensorMap* grad_out,
                        const CUtensorMap* k, const CUtensorMap* v, const BlockWalk& w, int64_t bg,
                        int64_t chunk, int q_outer) {
  const int lane = threadIdx.x % 32;
  const int64_t walk = bg * w.C + chunk;
  const int n = w.count[walk];
  const int32_t* piece_of = w.piece + walk * w.cap;
  const uint64_t* chose_of = w.chose ? w.chose + walk * w.cap : nullptr;
  if (lane == 0) {
    barrier_expect(&s.full[0], w.tokens * w.heads * D * 2 * 2);
    tma_load_tile<D>(s.tile[0][0], q, &s.full[0], w.q_first[chunk], q_outer);
    tma_load_tile<D>(s.tile[0][1], grad_out, &s.full[0], w.q_first[chunk], q_outer);
  }
  int stage = 1, round = 0;
  // Each lane reads one of the next 32 entries ahead.
  int32_t next_piece = lane < n ? piece_of[lane] : 0;
  uint64_t next_chose = chose_of && lane < n ? chose_of[lane] : ~0ull;
  for (int from = 0; from < n; from += 32) {
    const int32_t piece = next_piece;
    const uint64_t chose = next_chose;
    const int key = w.key_first[piece & ~kMasked], e = from + 32 + lane;
    next_piece = e < n ? piece_of[e] : 0;
    next_chose = chose_of && e < n ? chose_of[e] : ~0ull;
    for (int i = 0; i < min(32, n - from); ++i) {
      const int32_t p = __shfl_sync(~0u, piece, i);
      const uint64_t c = __shfl_sync(~0u, chose, i);
      const int row = __shfl_sync(~0u, key, i);
      if (lane == 0) {
        barrier_wait(&s.empty[stage], (round & 1) ^ 1);
        s.piece[stage] = p;
        s.chose[stage] = c;
        barrier_expect(&s.full[stage], 2 * Shared<D>::kTile);
        tma_load_tile<D>(s.tile[stage][0], k, &s.full[stage], row, int(bg));
        tma_load_tile<D>(s.tile[stage][1], v, &s.full[stage], row, int(bg));
      }
      __syncwarp();
      if (++stage == Shared<D>::kStages) stage = 0, ++round;
    }
  }
}

// What a thread knows of one of its two rows.
struct Row {
  int token = 0;
  int64_t at = -1;  // row of [B,H,Nq]; -1: none
  float lse = INFINITY, delta = 0;
  int32_t rank = 0;
};

__device__ Row row_of(const BlockSparseGpu& a, const BlockWalk& w, const float2* stats, int64_t bh,
                      int64_t chunk, int r) {
  Row row;
  const int head = r / w.tokens, first = w.q_first[chunk];
  row.token = r % w.tokens;
  if (head >= w.heads || row.token >= w.q_first[chunk + 1] - first) return row;
  row.at = (bh + head) * a.Nq + first + row.token;
  const float2 x = stats[row.at];
  row.lse = x.x, row.delta = x.y;
  if (a.rank_q) row.rank = a.rank_q[first + row.token];
  return row;
}

// P of the pairs that the element masks hide becomes 0.
__device__ void hide(float (&p)[32], const BlockSparseGpu& a, const BlockWalk& w, int64_t b,
                     int piece, const Row& row0, const Row& row1) {
  const int first = w.key_first[piece], size = w.key_first[piece + 1] - first;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int col = i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2;
    bool see = col < size && (!a.key_valid || a.key_valid[b * a.Nk + first + col]);
    bool see0 = see, see1 = see;
    if (see && a.rank_k) {
      const int rank = a.rank_k[first + col];
      see0 = rank <= row0.rank && (a.window <= 0 || row0.rank - rank < a.window);
      see1 = rank <= row1.rank && (a.window <= 0 || row1.rank - rank < a.window);
    }
    if (!see0) p[i / 2 * 4 + i % 2] = 0;
    if (!see1) p[i / 2 * 4 + 2 + i % 2] = 0;
  }
}

template <class T, int D>
__device__ void consume(Shared<D>& s, const BlockSparseGpu& a, const BlockWalk& w,
                        const float2* stats, int64_t b, int64_t bg, int64_t chunk, int64_t bh) {
  const int lane = threadIdx.x % 32, r = threadIdx.x / 32 * 16 + lane / 4;
  const Row row0 = row_of(a, w, stats, bh, chunk, r), row1 = row_of(a, w, stats, bh, chunk, r + 8);
  const int n = w.count[bg * w.C + chunk];
  const float by = a.scale * kLog2e;
  uint32_t q[D / 16][4], grad_out[D / 16][4];
  float dq[D / 2] = {}, p[32] = {}, dp[32] = {};
  pin(dq), pin(p), pin(dp);

  const auto tile = [&](int stage, int which) { return shared_address(s.tile[stage][which]); };
  const auto release = [&](int stage) {  // one arrival a warp
    if (lane == 0) barrier_arrive(&s.empty[stage]);
  };
  barrier_wait(&s.full[0], 0);
#pragma unroll
  for (int i = 0; i < D / 16; ++i) {
    load_operand(q[i], tile(0, 0), i);
    load_operand(grad_out[i], tile(0, 1), i);
  }
  fence_async();
  __syncwarp();
  release(0);

  int stage = 0, round = 0;
  constexpr bool kRunOn = D == 64;  // dQ's product runs on into the next item: 16 registers more
  for (int item = 1; item <= n; ++item) {
    const int before = stage;
    if (++stage == Shared<D>::kStages) stage = 0, ++round;
    barrier_wait(&s.full[stage], round & 1);
    pin(p), pin(dp);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < D / 16; ++i) wgmma<T>(p, q[i], k_major(tile(stage, 0), i), i > 0);
    wgmma_commit();
#pragma unroll
    for (int i = 0; i < D / 16; ++i) wgmma<T>(dp, grad_out[i], k_major(tile(stage, 1), i), i > 0);
    wgmma_commit();
    wgmma_wait<1>();  // S, and dQ of the item before: its stage is free
    pin(p), pin(dq);
    if (kRunOn && item > 1) release(before);
    const uint64_t chose = s.chose[stage];
    const float lse0 = chose >> row0.token & 1 ? row0.lse : INFINITY;
    const float lse1 = chose >> row1.token & 1 ? row1.lse : INFINITY;
#pragma unroll
    for (int i = 0; i < 32; ++i) p[i] = exp2_fast(fmaf(p[i], by, i % 4 < 2 ? -lse0 : -lse1));
    const int piece = s.piece[stage];
    if (piece & kMasked) hide(p, a, w, b, piece & ~kMasked, row0, row1);
    wgmma_wait<0>();
    pin(dp);
    uint32_t ds[4][4];
#pragma unroll
    for (int i = 0; i < 32; ++i) p[i] *= dp[i] - (i % 4 < 2 ? row0.delta : row1.delta);
#pragma unroll
    for (int i = 0; i < 4; ++i) pack_operand<T>(ds[i], p, i), pin(ds[i]);
    pin(dq);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; ++i) wgmma<T, true>(dq, ds[i], mn_major(tile(stage, 0), i));
    wgmma_commit();
    if (!kRunOn) {
      wgmma_wait<0>();
      pin(dq);
      release(stage);
    }
  }
  wgmma_wait<0>();
  pin(dq);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t at = half ? row1.at : row0.at;
    if (at < 0) continue;
    uint32_t* to = static_cast<uint32_t*>(a.grad_q) + at * (D / 2) + lane % 4;
#pragma unroll
    for (int j = 0; j < D / 8; ++j)
      to[j * 4] = pack(T(), dq[j * 4 + half * 2] * a.scale, dq[j * 4 + half * 2 + 1] * a.scale);
  }
}

template <class T, int D>
__global__ void __launch_bounds__(256, 2)
    grad_q_kernel(const __grid_constant__ BlockSparseGpu a, const __grid_constant__ BlockWalk w,
                  const float2* stats, const __grid_constant__ CUtensorMap q,
                  const __grid_constant__ CUtensorMap grad_out,
                  const __grid_constant__ CUtensorMap k, const __grid_constant__ CUtensorMap v) {
  extern __shared__ unsigned char memory[];
  Shared<D>& s = *reinterpret_cast<Shared<D>*>(memory);
  // Chunks from the last to the first: under causal lists, the longest walks first.
  const int64_t chunk = w.C - 1 - blockIdx.x % w.C, tile = blockIdx.x / w.C;
  const int tiles = int(a.H / a.G) / w.heads;  // of heads, of one (b, g)
  const int64_t bg = tile / tiles, b = bg / w.G;
  const int64_t bh = bg * (a.H / a.G) + tile % tiles * w.heads;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shared<D>::kStages; ++i)
      barrier_init(&s.full[i], 1), barrier_init(&s.empty[i], 4);
    barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    more_registers<224>();
    consume<T, D>(s, a, w, stats, b, bg, chunk, bh);
  } else {
    fewer_registers<32>();
    if (threadIdx.x < 160) produce<D>(s, &q, &grad_out, &k, &v, w, bg, chunk, int(bh));
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
  kernel<<<unsigned(ctas), 256, bytes, stream>>>(a, w, work.stats, q, grad_out, k, v);
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
