// grad_k and grad_v of block-sparse attention on Hopper for token rows: a CTA, one warpgroup, has one
// piece of 64 keys and walks the tokens that chose it (block_sparse_hopper_grad.h says how that is
// cut into tasks). Tile rows: block_sparse_hopper_grad_kv_tiles.cu.
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
#include "sigma/attention/kernels/block_sparse_hopper_grad_keys.h"
#include "sigma/attention/kernels/block_sparse_hopper_rows.h"

namespace sigma::kernels {
namespace {

using namespace hopper;

constexpr float kLog2e = 1.4426950408889634f;

template <int D>
struct Shared {
  static constexpr int kStages = 2;
  alignas(1024) unsigned char key_value[2][64 * D * 2];
  RowStage<D> stage[kStages];
  RowFacts facts[kStages];
  RowQueue queue;
  int32_t first_key, keys;  // of the piece
  alignas(16) uint64_t loaded;
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

// Do K and V stay in registers, too, as operands A? Then the matrix instructions of S and dP read
// half as much shared memory.
template <int D>
constexpr bool kHeld = D == 64;

template <class T, int D>
__global__ void __launch_bounds__(128, 2)
    grad_kv_kernel(const __grid_constant__ BlockSparseGpu a, const __grid_constant__ BlockWalk w,
                   const __grid_constant__ GradWork work, const __grid_constant__ CUtensorMap k_map,
                   const __grid_constant__ CUtensorMap v_map) {
  extern __shared__ unsigned char memory[];
  Shared<D>& s = *reinterpret_cast<Shared<D>*>(memory);
  if (int(blockIdx.x) >= work.totals[0]) return;
  const GradTask task = work.task[blockIdx.x];
  const int64_t bg = task.column / w.P;
  const int piece = int(task.column % w.P), lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
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
  Rows<D> rows{s.queue, a, w, work.stats, slots};
  rows.start();
  __syncthreads();
  // The queue's next item goes to a stage. All threads.
  const auto fetch = [&](int stage) { return rows.fetch(s.stage[stage], s.facts[stage]); };
  rows.fill();
  __syncthreads();
  int count = fetch(0);  // tokens of an item
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
  // The next item's copies are there, and all threads know it.
  const auto arrived = [&] {
    copy_wait<0>();
    // The tensor cores will read what ordinary copies wrote. The fence waits for all copies, so
    // it stands where no later ones are under way.
    fence_async();
    __syncthreads();
  };
  arrived();
  for (int stage = 0; count > 0; stage ^= 1) {
    const uint32_t q = shared_address(s.stage[stage].tile[0]), o = q + 128 * D;
    const RowFacts& facts = s.facts[stage];
    pin(p), pin(dp);
    if (w.tokens == 0) load_held();  // never: as in grad_q, keeps the assembler from reusing them
    wgmma_fence();
    product(p, k, k_held, q);
    product(dp, v, v_held, o);
    wgmma_wait<1>();  // S, and dK of the item before
    pin(p), pin(dk), pin(dv);
    __syncthreads();  // so that one's stage is free
    count = fetch(stage ^ 1);
    rows.fill();
    const int query0 = facts.query[lane], query1 = facts.query[lane + 32];
    const bool masked =
        __any_sync(~0u, (query0 >= 0 && query0 & kMasked) || (query1 >= 0 && query1 & kMasked));
    const float4* stats = reinterpret_cast<const float4*>(facts.stats) + lane % 4;
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
  }

  wgmma_wait<0>();
  pin(dk), pin(dv);
  store_sums<T, D>(a, work, task.slot, bg, s.first_key, s.keys, dk, dv);
}

template <class T, int D>
cudaError_t launch(const BlockSparseGpu& a, const BlockWalk& w, const GradWork& work,
                   cudaStream_t stream) {
  CUtensorMap k, v;
  cudaError_t error = tensor_map(&k, a.k, a.half, D, a.Nk, a.B * a.G, 64, 1);
  if (error == cudaSuccess) error = tensor_map(&v, a.v, a.half, D, a.Nk, a.B * a.G, 64, 1);
  const auto kernel = grad_kv_kernel<T, D>;
  const int bytes = sizeof(Shared<D>);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const int64_t ctas = w.B * w.G * w.P + 2 * kTarget;
  kernel<<<unsigned(ctas), 128, bytes, stream>>>(a, w, work, k, v);
  return cudaGetLastError();
}

}  // namespace

cudaError_t block_sparse_hopper_grad_kv(const BlockSparseGpu& a, const BlockWalk& w,
                                        const GradWork& work, cudaStream_t stream) {
  return launch_grad_kv(a, w, [&](auto type, auto width) {
    return launch<decltype(type), width>(a, w, work, stream);
  });
}

}  // namespace sigma::kernels
