// grad_k and grad_v of block-sparse attention on Hopper: a CTA, one warpgroup, has one piece of 64
// keys and walks what visits it (block_sparse_hopper_grad.h says how that is cut into tasks).
//
//   S^T = K Q^T   dP^T = V dO^T   P^T = exp2(scale log2e S^T - lse log2e)
//   dS^T = P^T o (dP^T - delta)   dV += P^T dO   dK += dS^T Q,   dK in the end times scale
//
// Keys are the 64 rows of the matrix instructions, so P^T and dS^T go from the accumulators'
// registers straight into those of operands A, and dK, dV stay in registers. K and V stay in shared
// memory; items of 64 rows of Q and dO come through a ring of stages (block_sparse_hopper_rows.h).
//
// In time, of one CTA (others share the multiprocessor: their matrix products fill the gaps):
//
//     tensor cores   S, dP         | dV          | dK |     S, dP
//     registers          | exp: P  | dS: P (dP - delta)   |
//     memory           next item
//
//   registers of a thread at D 128:  dK 64, dV 64, S 32, dP 32, P or dS 16
#include "sigma/attention/kernels/block_sparse_hopper_rows.h"

namespace sigma::kernels {
namespace {

using namespace hopper;

constexpr float kLog2e = 1.4426950408889634f;

#ifndef KV64
#define KV64 2
#endif
template <int D, bool gather>
struct Shared {
  static constexpr int kStages = gather || D == 128 ? 2 : KV64 == 2 ? 4 : 3;
  alignas(1024) unsigned char key_value[2][64 * D * 2];
  RowStage<D> stage[kStages];
  RowFacts facts[kStages];
  RowQueue<gather> queue;
  int32_t first_key, keys;  // of the piece
  alignas(16) uint64_t full[kStages], loaded;
};

// P^T of the pairs that the element masks hide becomes 0. Rows r and r + 8 of the piece's keys.
__device__ void hide(float (&p)[32], const RowFacts& facts, int slots, const BlockSparseGpu& a,
                     int64_t b, int first_key, int keys) {
  const int r = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
  const int key0 = first_key + min(r, keys - 1), key1 = first_key + min(r + 8, keys - 1);
  const bool valid0 = !a.key_valid || a.key_valid[b * a.Nk + key0];
  const bool valid1 = !a.key_valid || a.key_valid[b * a.Nk + key1];
  const int32_t rank0 = a.rank_k ? a.rank_k[key0] : 0, rank1 = a.rank_k ? a.rank_k[key1] : 0;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int query = facts.query[(i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2) % slots];
    bool see0 = valid0, see1 = valid1;
    if (a.rank_q && query >= 0) {
      const int32_t rank = a.rank_q[query & ~kMasked];
      see0 &= rank0 <= rank && (a.window <= 0 || rank - rank0 < a.window);
      see1 &= rank1 <= rank && (a.window <= 0 || rank - rank1 < a.window);
    }
    if (!see0) p[i / 2 * 4 + i % 2] = 0;
    if (!see1) p[i / 2 * 4 + 2 + i % 2] = 0;
  }
}

// CTAs of a multiprocessor, and whether K and V stay in registers, too, as operands A: then the
// matrix instructions read half as much shared memory.
template <int D>
constexpr int kCtas = D == 128 ? 2 : KV64;
template <int D>
constexpr bool kHeld = D == 64 && kCtas<D> == 2;

template <class T, int D, bool gather>
__global__ void __launch_bounds__(128, kCtas<D>)
    grad_kv_kernel(const __grid_constant__ BlockSparseGpu a, const __grid_constant__ BlockWalk w,
                   const __grid_constant__ GradWork work, const __grid_constant__ CUtensorMap q_map,
                   const __grid_constant__ CUtensorMap grad_out_map,
                   const __grid_constant__ CUtensorMap k_map,
                   const __grid_constant__ CUtensorMap v_map) {
  extern __shared__ unsigned char memory[];
  Shared<D, gather>& s = *reinterpret_cast<Shared<D, gather>*>(memory);
  constexpr int kStages = Shared<D, gather>::kStages;
  if (int(blockIdx.x) >= work.totals[0]) return;
  const GradTask task = work.task[blockIdx.x];
  const int64_t bg = task.column / w.P;
  const int piece = int(task.column % w.P), lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) barrier_init(&s.full[i], 1);
    barrier_init(&s.loaded, 1);
    barrier_init_fence();
    s.first_key = w.key_first[piece];
    s.keys = w.key_first[piece + 1] - s.first_key;
    s.queue.begin = bg * w.C * w.cap + w.col_start[bg * (w.P + 1) + piece];
    s.queue.first = task.first, s.queue.last = task.last;
    s.queue.bh = int(bg * (a.H / a.G));
    barrier_expect(&s.loaded, 2 * 64 * D * 2);
    tma_load_tile<D>(s.key_value[0], &k_map, &s.loaded, s.first_key, int(bg));
    tma_load_tile<D>(s.key_value[1], &v_map, &s.loaded, s.first_key, int(bg));
  }
  __syncthreads();
  const int slots = 64 / w.heads;
  Rows<D, gather> rows{s.queue, a, w, work.stats, gather ? slots : 1};
  rows.start();
  __syncthreads();
  // The queue's next item goes to a stage. All threads.
  const auto fetch = [&](int stage) {
    return rows.fetch(s.stage[stage], s.facts[stage], &s.full[stage], &q_map, &grad_out_map);
  };
  // Items under way before the current one's stage is asked for again, and their tokens. With many
  // stages the one freed two items ago is filled, and nobody waits for that.
  constexpr int kAhead = kStages >= 4 ? kStages - 2 : kStages - 1;
  int count[kAhead + 1];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    rows.fill();
    __syncthreads();
    count[i] = fetch(i);
  }
  rows.fill();

  const float by = a.scale * kLog2e;
  float dk[D / 2] = {}, dv[D / 2] = {}, p[32] = {}, dp[32] = {};
  pin(dk), pin(dv), pin(p), pin(dp);
  const uint32_t k = shared_address(s.key_value[0]), v = shared_address(s.key_value[1]);
  uint32_t k_held[kHeld<D> ? D / 16 : 1][4], v_held[kHeld<D> ? D / 16 : 1][4];
  barrier_wait(&s.loaded, 0);
  const auto load_held = [&] {
    if constexpr (kHeld<D>) {
#pragma unroll
      for (int i = 0; i < D / 16; ++i) load_operand(k_held[i], k, i), load_operand(v_held[i], v, i);
    }
  };
  load_held();
  // dst = A B^T, 64 x 64: A is K or V, B a tile of rows.
  const auto product = [&](float(&dst)[32], uint32_t tile, const auto& held, uint32_t b) {
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
      if constexpr (kHeld<D>) wgmma<T>(dst, held[i], k_major(b, i), i > 0);
      else wgmma<T>(dst, k_major(tile, i), k_major(b, i), i > 0);
    }
    wgmma_commit();
  };
  // Item i's copies are there, and all threads know it.
  const auto arrived = [&] {
    copy_wait<kAhead - 1>();
    // The tensor cores will read what ordinary copies wrote. The fence waits for all copies, so
    // it stands where no later ones are under way.
    if (gather) fence_async();
    __syncthreads();
  };
  arrived();
  for (int stage = 0, round = 0; count[0] > 0;) {
    if (!gather) barrier_wait(&s.full[stage], round & 1);
    const uint32_t q = shared_address(s.stage[stage].tile[0]), o = q + 128 * D;
    const RowFacts& facts = s.facts[stage];
    pin(p), pin(dp);
    if (w.tokens == 0) load_held();  // never: as in grad_q, keeps the assembler from reusing them
    wgmma_fence();
    product(p, k, k_held, q);
    product(dp, v, v_held, o);
    // Meanwhile: a later item, the queue, and whether any query's chunk is masked.
    if (kAhead == kStages - 1) {
      wgmma_wait<1>();  // S, and dK of the item before
      pin(p), pin(dk), pin(dv);
      __syncthreads();  // so that one's stage is free
    }
    count[kAhead] = fetch((stage + kAhead) % kStages);
    rows.fill();
    const int query0 = facts.query[lane], query1 = facts.query[lane + 32];
    const bool masked =
        __any_sync(~0u, (query0 >= 0 && query0 & kMasked) || (query1 >= 0 && query1 & kMasked));
    const float4* stats = reinterpret_cast<const float4*>(facts.stats) + lane % 4;
    wgmma_wait<1>();
    pin(p), pin(dk), pin(dv);
#pragma unroll
    for (int j = 0; j < 8; ++j) {  // columns 8j + 2 (lane % 4), and the next one
      const float4 x = stats[j * 4];
      p[4 * j + 0] = exp2_fast(fmaf(p[4 * j + 0], by, -x.x));
      p[4 * j + 1] = exp2_fast(fmaf(p[4 * j + 1], by, -x.z));
      p[4 * j + 2] = exp2_fast(fmaf(p[4 * j + 2], by, -x.x));
      p[4 * j + 3] = exp2_fast(fmaf(p[4 * j + 3], by, -x.z));
    }
    if (masked && (a.rank_q || a.key_valid))
      hide(p, facts, slots, a, bg / w.G, s.first_key, s.keys);
    uint32_t operand[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) pack_operand<T>(operand[i], p, i), pin(operand[i]);
    pin(dv);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; ++i) wgmma<T, true>(dv, operand[i], mn_major(o, i));
    wgmma_commit();
    wgmma_wait<1>();  // dP
    pin(dp);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float4 x = stats[j * 4];
      p[4 * j + 0] *= dp[4 * j + 0] - x.y;
      p[4 * j + 1] *= dp[4 * j + 1] - x.w;
      p[4 * j + 2] *= dp[4 * j + 2] - x.y;
      p[4 * j + 3] *= dp[4 * j + 3] - x.w;
    }
    uint32_t ds[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) pack_operand<T>(ds[i], p, i), pin(ds[i]);
    pin(dk);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; ++i) wgmma<T, true>(dk, ds[i], mn_major(q, i));
    wgmma_commit();
    wgmma_wait<1>();  // dV
    pin(dv);
    arrived();
#pragma unroll
    for (int i = 0; i < kAhead; ++i) count[i] = count[i + 1];
    if (++stage == kStages) stage = 0, ++round;
  }

  wgmma_wait<0>();
  pin(dk), pin(dv);
  // Rows r and r + 8, columns 8j + 2 (lane % 4) and the next one.
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = threadIdx.x / 32 * 16 + lane / 4 + half * 8;
    if (row >= s.keys) continue;
    const int64_t at = (bg * a.Nk + s.first_key + row) * (D / 2) + lane % 4;
    float2* part = reinterpret_cast<float2*>(work.partial) +
                   (int64_t(max(task.slot, 0)) * 128 + row) * (D / 2) + lane % 4;
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
      const float k0 = dk[4 * j + 2 * half], k1 = dk[4 * j + 2 * half + 1];
      const float v0 = dv[4 * j + 2 * half], v1 = dv[4 * j + 2 * half + 1];
      if (task.slot >= 0) {
        part[4 * j] = make_float2(k0, k1);
        part[4 * j + 32 * D] = make_float2(v0, v1);
      } else {
        static_cast<uint32_t*>(a.grad_k)[at + 4 * j] = pack(T(), k0 * a.scale, k1 * a.scale);
        static_cast<uint32_t*>(a.grad_v)[at + 4 * j] = pack(T(), v0, v1);
      }
    }
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
  const auto run = [&](auto kernel, int bytes) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return error;
    const int64_t ctas = w.B * w.G * w.P + 2 * kTarget;
    kernel<<<unsigned(ctas), 128, bytes, stream>>>(a, w, work, q, grad_out, k, v);
    return cudaGetLastError();
  };
  // Boxes fill all 64 rows only so.
  if (!w.col_chose && w.tokens * w.heads == 64)
    return run(grad_kv_kernel<T, D, false>, int(sizeof(Shared<D, false>)));
  return run(grad_kv_kernel<T, D, true>, int(sizeof(Shared<D, true>)));
}

}  // namespace

cudaError_t block_sparse_hopper_grad_kv(const BlockSparseGpu& a, const BlockWalk& w,
                                        const GradWork& work, cudaStream_t stream) {
  if (w.B * w.G * w.P == 0) return cudaSuccess;
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
