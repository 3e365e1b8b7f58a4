// grad_q of block-sparse attention on Hopper, D 64: a CTA has one chunk of 64 rows and walks its
// pieces. D 128: block_sparse_hopper_grad_q.cu.
//
//   S = Q K^T   dP = dO V^T   P = exp2(scale log2e S - lse log2e)   dS = P o (dP - delta)
//   dQ += dS K,   and in the end times scale
//
// Q and dO stay in registers as operands A; a producer warp brings K and V of entry after entry into
// a ring of stages, and one warpgroup consumes them. dS goes from the accumulators' registers
// straight into those of an operand A (hopper.h). K is read both ways: K-major for S, MN-major for
// dQ. At this width exponentials take as long as products, so S of the next entry has registers of
// its own and is on its way meanwhile (e: an entry):
//
//     tensor cores   dP(e)  S(e+1) |       | dQ(e)  dP(e+1)  S(e+2) |
//     registers      exp(e)        | dS(e) |        exp(e+1)        | dS(e+1)
//
//   registers of a thread:  Q 16, dO 16, dQ 32, S 64, dP 32, dS 16
#include "sigma/attention/kernels/block_sparse_hopper_grad_queries.h"

namespace sigma::kernels {
namespace {

using namespace hopper;

constexpr float kLog2e = 1.4426950408889634f;
constexpr int D = 64;

struct Entry {
  uint64_t chose;  // which tokens chose it
  int32_t piece;   // perhaps | kMasked
};

struct Shared {
  static constexpr int kTile = 64 * D * 2;  // bytes
  static constexpr int kStages = 6;
  // Item i at stage i % kStages, 2 tiles: item 0 is Q, dO, item e + 1 K, V of entry e.
  alignas(1024) unsigned char tile[kStages][2][kTile];
  Entry entry[kStages];
  ChunkRows rows;
  alignas(16) uint64_t full[kStages], empty[kStages];
};

struct Params {
  BlockSparseGpu a;
  BlockWalk w;
  const float2* stats;
  ChunkMaps map;
};

// Q and dO, then K and V of one entry after another: item i goes to stage i % kStages. One warp.
__device__ void produce(const Params& p, Shared& s, const ChunkPlace& at) {
  const BlockWalk& w = p.w;
  const int64_t walk = at.walk;
  const int n = w.count[walk], lane = threadIdx.x % 32, query = w.q_first[at.chunk];
  const int bg = int(at.bg), bh = int(at.bh);
  if (elect()) {
    barrier_expect(&s.full[0], w.tokens * w.heads * D * 2 * 2);
    tma_load_tile<D>(s.tile[0][0], &p.map.q, &s.full[0], query, bh);
    tma_load_tile<D>(s.tile[0][1], &p.map.grad_out, &s.full[0], query, bh);
  }
  int stage = 1, parity = 1;
  for (int from = 0; from < n; from += 32) {
    int32_t piece = 0, key = 0;  // a lane, an entry
    uint64_t chose = ~0ull;
    if (from + lane < n) {
      piece = w.piece[walk * w.cap + from + lane];
      key = w.key_first[piece & ~kMasked];
      if (w.chose) chose = w.chose[walk * w.cap + from + lane];
    }
    for (int i = 0; i < min(32, n - from); ++i) {
      const Entry entry = {__shfl_sync(~0u, chose, i), __shfl_sync(~0u, piece, i)};
      const int first = __shfl_sync(~0u, key, i);
      barrier_wait(&s.empty[stage], parity);
      if (elect()) {
        s.entry[stage] = entry;
        barrier_expect(&s.full[stage], 2 * Shared::kTile);
        tma_load_tile<D>(s.tile[stage][0], &p.map.k, &s.full[stage], first, bg);
        tma_load_tile<D>(s.tile[stage][1], &p.map.v, &s.full[stage], first, bg);
      }
      if (++stage == Shared::kStages) stage = 0, parity ^= 1;
    }
  }
}

template <class T>
__device__ void consume(const Params& params, Shared& s, const ChunkPlace& at) {
  constexpr int kStages = Shared::kStages;
  const BlockSparseGpu& a = params.a;
  const BlockWalk& w = params.w;
  const int n = w.count[at.walk], lane = threadIdx.x % 32, r = threadIdx.x / 32 * 16 + lane / 4;
  const int token0 = r % w.tokens, token1 = (r + 8) % w.tokens;
  const float by = a.scale * kLog2e;
  float dq[D / 2] = {}, dp[32] = {};
  pin(dq), pin(dp);
  uint32_t ds[4][4], q[D / 16][4], grad_out[D / 16][4];
  const auto tile = [&](int stage, int which) { return shared_address(s.tile[stage][which]); };
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
  const auto release = [&](int stage) {
    __syncwarp();
    if (lane == 0) barrier_arrive(&s.empty[stage]);
  };
  barrier_wait(&s.full[0], 0);
  load_rows();
  fence_async();
  release(0);
  const auto issue_s = [&](float(&x)[32], int stage) {
#pragma unroll
    for (int i = 0; i < D / 16; ++i) wgmma<T>(x, q[i], k_major(tile(stage, 0), i), i > 0);
  };
  const auto issue_dp = [&](int stage) {
#pragma unroll
    for (int i = 0; i < D / 16; ++i) wgmma<T>(dp, grad_out[i], k_major(tile(stage, 1), i), i > 0);
  };
  const auto exponentials = [&](float(&x)[32], int stage) {
    const Entry entry = s.entry[stage];
    const float lse0 = entry.chose >> token0 & 1 ? s.rows.stats[r].x : INFINITY;
    const float lse1 = entry.chose >> token1 & 1 ? s.rows.stats[r + 8].x : INFINITY;
#pragma unroll
    for (int i = 0; i < 32; ++i) x[i] = exp2_fast(fmaf(x[i], by, i % 4 < 2 ? -lse0 : -lse1));
    if (entry.piece & kMasked) hide(x, s.rows, r, a, w, at.bg / w.G, entry.piece & ~kMasked);
  };
  const auto to_ds = [&](float(&x)[32]) {
    const float delta0 = s.rows.stats[r].y, delta1 = s.rows.stats[r + 8].y;
#pragma unroll
    for (int i = 0; i < 32; ++i) x[i] *= dp[i] - (i % 4 < 2 ? delta0 : delta1);
#pragma unroll
    for (int i = 0; i < 4; ++i) pack_operand<T>(ds[i], x, i), pin(ds[i]);
  };
  const auto issue_dq = [&](int stage) {
#pragma unroll
    for (int i = 0; i < 4; ++i) wgmma<T, true>(dq, ds[i], mn_major(tile(stage, 0), i));
  };
  // The entry's stage, the one's before and the next one's; the round of the last.
  int stage = 1, before = 0, next_stage = 2, round = 0;
  const auto advance = [&] {
    before = stage, stage = next_stage;
    if (++next_stage == kStages) next_stage = 0, ++round;
  };
  // S of an entry behind the last runs on what its stage happens to hold, and nobody reads it: so no
  // matrix instruction depends on a condition.
  float even[32] = {}, odd[32] = {};
  pin(even), pin(odd);
  if (n > 0) barrier_wait(&s.full[1], 0);
  wgmma_fence();
  issue_s(even, 1);
  wgmma_commit();
  wgmma_wait<0>();
  const auto step = [&](float(&x)[32], float(&next)[32], int e) {
    if (e + 1 < n) barrier_wait(&s.full[next_stage], round & 1);
    if (w.tokens == 0) wgmma_wait<0>(), load_rows();  // never; see above
    pin(x), pin(next), pin(dp);
    wgmma_fence();
    issue_dp(stage);
    issue_s(next, next_stage);
    wgmma_commit();
    exponentials(x, stage);
    wgmma_wait<1>();  // dQ of the entry before
    pin(dq);
    if (e > 0) release(before);
    wgmma_wait<0>();
    pin(dp), pin(next);
    to_ds(x);
    wgmma_fence();
    issue_dq(stage);
    wgmma_commit();
    advance();
  };
  for (int e = 0; e < n;) {
    step(even, odd, e);
    if (++e == n) break;
    step(odd, even, e);
    ++e;
  }
  wgmma_wait<0>();
  pin(dq);
  store_grad_q<T>(a, s.rows, r, at.bh, dq);
}

template <class T>
__global__ void __launch_bounds__(256, 2) grad_q_kernel(const __grid_constant__ Params p) {
  extern __shared__ unsigned char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory);
  const ChunkPlace at = chunk_place(p.a, p.w);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shared::kStages; ++i) {
      barrier_init(&s.full[i], 1);
      barrier_init(&s.empty[i], 4);
    }
    barrier_init_fence();
  }
  if (threadIdx.x < 64) read_rows(s.rows, p.a, p.w, p.stats, at);
  __syncthreads();
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);  // known to be the same in all lanes
  if (warp >= 4) {
    fewer_registers<24>();
    if (warp == 4) produce(p, s, at);
  } else {
    more_registers<232>();
    consume<T>(p, s, at);
  }
}

template <class T>
cudaError_t launch(const BlockSparseGpu& a, const BlockWalk& w, const GradWork& work,
                   cudaStream_t stream) {
  Params p{a, w, work.stats, {}};
  cudaError_t error = chunk_maps(&p.map, a, w);
  const auto kernel = grad_q_kernel<T>;
  const int bytes = sizeof(Shared);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  kernel<<<unsigned(a.B * a.H / w.heads * w.C), 256, bytes, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace

cudaError_t block_sparse_hopper_grad_q_64(const BlockSparseGpu& a, const BlockWalk& w,
                                          const GradWork& work, cudaStream_t stream) {
  return a.half ? launch<__half>(a, w, work, stream) : launch<__nv_bfloat16>(a, w, work, stream);
}

}  // namespace sigma::kernels
