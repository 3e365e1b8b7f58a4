// grad_k and grad_v of block-sparse attention on Hopper for tile rows: a CTA has one piece of 64
// keys and walks the chunks that visit it (block_sparse_hopper_grad.h says how that is cut into
// tasks). Token rows: block_sparse_hopper_grad_kv.cu.
//
//   S^T = K Q^T   dP^T = V dO^T   P^T = exp2(scale log2e S^T - lse log2e)
//   dS^T = P^T o (dP^T - delta)   dV += P^T dO   dK += dS^T Q,   dK in the end times scale
//
// Keys are the 64 rows of the matrix instructions, so P^T and dS^T go from the accumulators'
// registers straight into those of operands A, and dK, dV stay in registers. A producer warp brings
// item after item, 64 rows of Q and dO, into a ring of stages; one warpgroup consumes them.
//
// In time, of one CTA of two on a multiprocessor (e: an item). A warp that issues a product with A in
// registers (dV, dK) waits until it is that product's turn; one with A in shared memory (S, dP) runs
// on its own. So an item has one block of arithmetic and one of products, and the two CTAs
// alternate. D 64: S of the next item has a second set of registers:
//
//     tensor cores   dP(e)  S(e+1) |       | dV(e)  dK(e) | dP(e+1)  S(e+2) |
//     registers      exp(e)        | dS(e) |              | exp(e+1)        | dS(e+1)
//
// D 128 has none:
//
//     tensor cores   dP(e)  |       | dV(e)  dK(e)  S(e+1) | dP(e+1)  |
//     registers      exp(e) | dS(e) |                      | exp(e+1) | dS(e+1)
//
//   registers of a thread:  dK and dV D, S 32 (D 64: 64), dP 32, P 16, dS 16
#include "sigma/attention/kernels/block_sparse_hopper_grad_keys.h"

namespace sigma::kernels {
namespace {

using namespace hopper;

constexpr float kLog2e = 1.4426950408889634f;

// Has S of the next item registers of its own?
template <int D>
constexpr bool kAhead = D == 64;

template <int D>
struct Shared {
  static constexpr int kStages = D == 128 ? 2 : 4, kTile = 64 * D * 2;
  alignas(1024) unsigned char key_value[2][kTile];
  unsigned char row[kStages][2][kTile];  // Q, grad_out
  float lse[kStages][64];                // log2 e times; +inf for the rows a chunk has not
  float delta[kStages][64];
  int2 chunk[kStages];  // its first query, perhaps | kMasked, and how many
  alignas(16) uint64_t full[kStages], empty[kStages], loaded;
};

struct Params {
  BlockSparseGpu a;
  BlockWalk w;
  GradWork work;
  CUtensorMap q, grad_out, k, v;
};

// The items of all heads of the group, from the last entry to the first: all columns of causal lists
// end with the last queries, so CTAs that start together read about the same rows, and some of these
// from the L2 cache. One warp.
template <int D>
__device__ void produce(const Params& p, Shared<D>& s, const GradTask& task) {
  const BlockWalk& w = p.w;
  const int lane = threadIdx.x % 32, M = int(p.a.H / p.a.G);
  const int64_t bg = task.column / w.P, piece = task.column % w.P;
  const int32_t* chunks = w.col_chunk + bg * w.C * w.cap + w.col_start[bg * (w.P + 1) + piece];
  int stage = 0, parity = 1;
  for (int64_t bh = bg * M; bh < (bg + 1) * M; ++bh) {
    const float2* stats = p.work.stats + bh * p.a.Nq;
    for (int last = task.last; last > task.first; last -= 32) {
      int2 mine = {0, 0};  // a lane, an entry
      if (last - 1 - lane >= task.first) {
        const int32_t entry = chunks[last - 1 - lane], chunk = entry & ~kMasked;
        mine.x = w.q_first[chunk], mine.y = w.q_first[chunk + 1] - mine.x;
        mine.x |= entry & kMasked;
      }
      for (int i = 0; i < min(32, last - task.first); ++i) {
        const int x = __shfl_sync(~0u, mine.x, i), count = __shfl_sync(~0u, mine.y, i);
        const int query = x & ~kMasked;
        float2 row[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          row[j] = make_float2(INFINITY, 0);
          if (lane + 32 * j < count) row[j] = stats[query + lane + 32 * j];
        }
        barrier_wait(&s.empty[stage], parity);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          s.lse[stage][lane + 32 * j] = row[j].x;
          s.delta[stage][lane + 32 * j] = row[j].y;
        }
        __syncwarp();
        if (elect()) {
          s.chunk[stage] = make_int2(x, count);
          barrier_expect(&s.full[stage], 2 * Shared<D>::kTile);
          tma_load_tile<D>(s.row[stage][0], &p.q, &s.full[stage], query, int(bh));
          tma_load_tile<D>(s.row[stage][1], &p.grad_out, &s.full[stage], query, int(bh));
        }
        if (++stage == Shared<D>::kStages) stage = 0, parity ^= 1;
      }
    }
  }
}

// P^T of the pairs that the element masks hide becomes 0. Rows r and r + 8 of the piece's keys.
__device__ void hide(float (&p)[32], int2 chunk, const BlockSparseGpu& a, int64_t b, int first_key,
                     int keys) {
  const int r = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
  const int key0 = first_key + min(r, keys - 1), key1 = first_key + min(r + 8, keys - 1);
  const bool valid0 = !a.key_valid || a.key_valid[b * a.Nk + key0];
  const bool valid1 = !a.key_valid || a.key_valid[b * a.Nk + key1];
  const int32_t rank0 = a.rank_k ? a.rank_k[key0] : 0, rank1 = a.rank_k ? a.rank_k[key1] : 0;
  uint32_t visible = 0;  // bit i: of p[i]
#pragma unroll 4
  for (int i = 0; i < 16; ++i) {
    const int column = i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2;
    if (column >= chunk.y) continue;
    bool see0 = valid0, see1 = valid1;
    if (a.rank_q) {
      const int32_t rank = a.rank_q[(chunk.x & ~kMasked) + column];
      see0 &= rank0 <= rank && (a.window <= 0 || rank - rank0 < a.window);
      see1 &= rank1 <= rank && (a.window <= 0 || rank - rank1 < a.window);
    }
    visible |= (uint32_t(see0) | uint32_t(see1) << 2) << (i / 2 * 4 + i % 2);
  }
#pragma unroll
  for (int i = 0; i < 32; ++i)
    if (!(visible >> i & 1)) p[i] = 0;
}

template <class T, int D>
__device__ void consume(const Params& params, Shared<D>& s, const GradTask& task) {
  constexpr int kStages = Shared<D>::kStages;
  const BlockSparseGpu& a = params.a;
  const BlockWalk& w = params.w;
  const int lane = threadIdx.x % 32, n = (task.last - task.first) * int(a.H / a.G);
  const int64_t bg = task.column / w.P;
  const int piece = int(task.column % w.P), first_key = w.key_first[piece];
  const int keys = w.key_first[piece + 1] - first_key;
  const float by = a.scale * kLog2e;

  float dk[D / 2] = {}, dv[D / 2] = {}, dp[32] = {};
  pin(dk), pin(dv), pin(dp);
  uint32_t p[4][4], ds[4][4];  // operands
  const uint32_t k = shared_address(s.key_value[0]), v = shared_address(s.key_value[1]);
  const auto arrived = [&](int e) {
    if (e < n) barrier_wait(&s.full[e % kStages], e / kStages & 1);
  };
  const auto release = [&](int e) {
    __syncwarp();
    if (e >= 0 && lane == 0) barrier_arrive(&s.empty[e % kStages]);
  };
  const auto tile = [&](int e, int which) { return shared_address(s.row[e % kStages][which]); };

  // S = K Q^T, dP = V dO^T of item e.
  const auto issue_s = [&](float(&x)[32], int e) {
#pragma unroll
    for (int i = 0; i < D / 16; ++i) wgmma<T>(x, k_major(k, i), k_major(tile(e, 0), i), i > 0);
  };
  const auto issue_dp = [&](int e) {
#pragma unroll
    for (int i = 0; i < D / 16; ++i) wgmma<T>(dp, k_major(v, i), k_major(tile(e, 1), i), i > 0);
  };
  const auto issue_sums = [&](int e) {
#pragma unroll
    for (int i = 0; i < 4; ++i) wgmma<T, true>(dv, p[i], mn_major(tile(e, 1), i));
#pragma unroll
    for (int i = 0; i < 4; ++i) wgmma<T, true>(dk, ds[i], mn_major(tile(e, 0), i));
  };
  const auto pack_all = [&](uint32_t(&to)[4][4], const float(&x)[32]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) pack_operand<T>(to[i], x, i), pin(to[i]);
  };
  // x: S, and then P.
  const auto to_p = [&](float(&x)[32], int e) {
    const float2* lse = reinterpret_cast<const float2*>(s.lse[e % kStages]) + lane % 4;
#pragma unroll
    for (int j = 0; j < 8; ++j) {  // columns 8j + 2 (lane % 4), and the next one
      const float2 y = lse[j * 4];
      x[4 * j + 0] = exp2_fast(fmaf(x[4 * j + 0], by, -y.x));
      x[4 * j + 1] = exp2_fast(fmaf(x[4 * j + 1], by, -y.y));
      x[4 * j + 2] = exp2_fast(fmaf(x[4 * j + 2], by, -y.x));
      x[4 * j + 3] = exp2_fast(fmaf(x[4 * j + 3], by, -y.y));
    }
    const int2 chunk = s.chunk[e % kStages];
    if (chunk.x & kMasked && (a.rank_q || a.key_valid))
      hide(x, chunk, a, bg / w.G, first_key, keys);
  };
  // x: P, and then dS.
  const auto to_ds = [&](float(&x)[32], int e) {
    const float2* delta = reinterpret_cast<const float2*>(s.delta[e % kStages]) + lane % 4;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 y = delta[j * 4];
      x[4 * j + 0] *= dp[4 * j + 0] - y.x;
      x[4 * j + 1] *= dp[4 * j + 1] - y.y;
      x[4 * j + 2] *= dp[4 * j + 2] - y.x;
      x[4 * j + 3] *= dp[4 * j + 3] - y.y;
    }
  };

  // S of an item behind the last runs on what its stage happens to hold, and nobody reads it: so no
  // matrix instruction depends on a condition.
  float even[32] = {};
  pin(even);
  barrier_wait(&s.loaded, 0);
  arrived(0);
  wgmma_fence();
  issue_s(even, 0);
  wgmma_commit();
  wgmma_wait<0>();
  if constexpr (kAhead<D>) {
    float odd[32] = {};
    pin(odd);
    const auto step = [&](float(&x)[32], float(&next)[32], int e) {
      arrived(e + 1);
      pin(x), pin(next), pin(dp);
      wgmma_fence();
      issue_dp(e);
      issue_s(next, e + 1);
      wgmma_commit();
      to_p(x, e);
      wgmma_wait<1>();  // dV and dK of the item before
      pin(dv), pin(dk);
      release(e - 1);
      pack_all(p, x);
      wgmma_wait<0>();
      pin(dp), pin(next);
      to_ds(x, e);
      pack_all(ds, x);
      wgmma_fence();
      issue_sums(e);
      wgmma_commit();
    };
    for (int e = 0; e < n;) {
      step(even, odd, e);
      if (++e == n) break;
      step(odd, even, e);
      ++e;
    }
    wgmma_wait<0>();
  } else {
    for (int e = 0; e < n; ++e) {
      pin(even), pin(dp), pin(dk), pin(dv);
      wgmma_fence();
      issue_dp(e);
      wgmma_commit();
      to_p(even, e);
      pack_all(p, even);
      wgmma_wait<0>();
      pin(dp);
      to_ds(even, e);
      pack_all(ds, even);
      arrived(e + 1);
      pin(even);
      wgmma_fence();
      issue_sums(e);
      wgmma_commit();
      issue_s(even, e + 1);
      wgmma_commit();
      wgmma_wait<1>();  // dV, dK
      release(e);
      wgmma_wait<0>();
    }
  }
  pin(dk), pin(dv);
  store_sums<T, D>(a, params.work, task.slot, bg, first_key, keys, dk, dv);
}

template <class T, int D>
__global__ void __launch_bounds__(256, 2) grad_kv_tiles(const __grid_constant__ Params p) {
  extern __shared__ unsigned char memory[];
  Shared<D>& s = *reinterpret_cast<Shared<D>*>(memory);
  if (int(blockIdx.x) >= p.work.totals[0]) return;
  const GradTask task = p.work.task[blockIdx.x];
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shared<D>::kStages; ++i) {
      barrier_init(&s.full[i], 1);
      barrier_init(&s.empty[i], 4);
    }
    barrier_init(&s.loaded, 1);
    barrier_init_fence();
    const int bg = int(task.column / p.w.P), key = p.w.key_first[task.column % p.w.P];
    barrier_expect(&s.loaded, 2 * Shared<D>::kTile);
    tma_load_tile<D>(s.key_value[0], &p.k, &s.loaded, key, bg);
    tma_load_tile<D>(s.key_value[1], &p.v, &s.loaded, key, bg);
  }
  __syncthreads();
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);  // known to be the same in all lanes
  if (warp >= 4) {
    fewer_registers<24>();
    if (warp == 4) produce<D>(p, s, task);
  } else {
    more_registers<232>();
    consume<T, D>(p, s, task);
  }
}

template <class T, int D>
cudaError_t launch(const BlockSparseGpu& a, const BlockWalk& w, const GradWork& work,
                   cudaStream_t stream) {
  Params p{a, w, work, {}, {}, {}, {}};
  cudaError_t error = tensor_map(&p.q, a.q, a.half, D, a.Nq, a.B * a.H, 64, 1);
  if (error == cudaSuccess)
    error = tensor_map(&p.grad_out, a.grad_out, a.half, D, a.Nq, a.B * a.H, 64, 1);
  if (error == cudaSuccess) error = tensor_map(&p.k, a.k, a.half, D, a.Nk, a.B * a.G, 64, 1);
  if (error == cudaSuccess) error = tensor_map(&p.v, a.v, a.half, D, a.Nk, a.B * a.G, 64, 1);
  const auto kernel = grad_kv_tiles<T, D>;
  const int bytes = sizeof(Shared<D>);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const int64_t ctas = w.B * w.G * w.P + 2 * kTarget;
  kernel<<<unsigned(ctas), 256, bytes, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace

cudaError_t block_sparse_hopper_grad_kv_tiles(const BlockSparseGpu& a, const BlockWalk& w,
                                              const GradWork& work, cudaStream_t stream) {
  return launch_grad_kv(a, w, [&](auto type, auto width) {
    return launch<decltype(type), width>(a, w, work, stream);
  });
}

}  // namespace sigma::kernels
