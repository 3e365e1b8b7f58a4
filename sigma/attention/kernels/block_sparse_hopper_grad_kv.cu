// grad_k and grad_v of block-sparse attention on Hopper: a CTA has one piece of 64 keys and walks
// what visits it (block_sparse_hopper_grad.h says how that is cut into tasks).
//
//   S^T = K Q^T   dP^T = V dO^T   P^T = exp2(scale log2e S^T - lse log2e)
//   dS^T = P^T o (dP^T - delta)   dV += P^T dO   dK += dS^T Q,   dK in the end times scale
//
// Keys are the 64 rows of the matrix instructions, so P^T and dS^T go from the accumulators'
// registers straight into those of operands A, and dK, dV stay in registers. K and V stay in shared
// memory. An item is 64 rows of Q and dO. A producer warpgroup gathers them: of each visiting chunk
// only the tokens that chose the piece, 64 / heads tokens an item, so that all 64 rows work however
// few tokens of a chunk agree. Row r of an item is head r / slots of its token r % slots. Rows that
// stay empty are zero, and so is what they add.
//
//   registers of a thread at D 128:  dK 64, dV 64, S 32, dP 32, P or dS 16
#include "sigma/attention/kernels/block_sparse_hopper_grad.h"
#include "sigma/attention/kernels/hopper.h"

namespace sigma::kernels {
namespace {

using namespace hopper;

constexpr float kLog2e = 1.4426950408889634f;
constexpr int kQueue = 64 + 32 * 64;  // tokens waiting: less than an item, and of 32 entries

constexpr int kProducers = 128;

template <int D>
struct Shared {
  static constexpr int kTile = 64 * D * 2;  // bytes
  static constexpr int kStages = D == 128 ? 2 : 4;
  alignas(1024) unsigned char key_value[2][kTile];
  unsigned char tile[kStages][2][kTile];  // Q, dO
  float2 stats[kStages][64];              // of the rows: lse log2 e, delta
  int32_t query[kStages][64];             // of the slots, perhaps | kMasked; -1: none
  int32_t row[kStages][64];               // rows of Q: head Nq + query; -1: none
  int32_t end[kStages];                   // no item, but the end of them
  int32_t queue[kQueue], queued;          // queries waiting, as above
  alignas(16) uint64_t full[kStages], empty[kStages], loaded;
};

// 16 bytes, or 8, from global to shared memory; zeros if not `real`.
template <int bytes>
__device__ void copy(uint32_t to, const void* from, bool real) {
  const int size = real ? bytes : 0;
  if constexpr (bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(size)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(size)
                 : "memory");
}
// The barrier counts this thread's copies so far as one arrival, once they are there.
__device__ void copies_arrive(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

// The producers: 4 warps.
template <int D>
struct Producer {
  Shared<D>& s;
  const BlockSparseGpu& a;
  const BlockWalk& w;
  const float2* stats;
  const int slots;  // tokens an item
  int stage = 0, round = 0;

  // One item: `count` tokens of the queue, from `from`; 0: the end. bh: first of the heads.
  __device__ void item(int64_t bh, int from, int count) {
    const int t = threadIdx.x % kProducers;
    barrier_wait(&s.empty[stage], (round & 1) ^ 1);
    if (t < 64) {
      const int head = t / slots, slot = t % slots;
      const int query = head < w.heads && slot < count ? s.queue[from + slot] : -1;
      const int row = query < 0 ? -1 : head * int(a.Nq) + (query & ~kMasked);
      s.row[stage][t] = row;
      s.query[stage][t] = head == 0 ? query : -1;
      if (t == 0) s.end[stage] = count == 0;
      copy<8>(shared_address(&s.stats[stage][t]), stats + bh * a.Nq + max(row, 0), row >= 0);
      __syncwarp();
      if (t % 32 == 0) barrier_arrive(&s.full[stage]);
    }
    meet(2, kProducers);  // rows are there
    if (count > 0) {
      constexpr int kUnits = D / 8;  // of 16 bytes, of a row
      const int unit = t % kUnits, first = t / kUnits;
      const uint32_t to = shared_address(s.tile[stage][0]) + unit / 8 * 8192 + first * 128 +
                          ((unit % 8 ^ first % 8) << 4);
      const int64_t base = bh * a.Nq * D + unit * 8;
#pragma unroll 2
      for (int r = 0; r < 64; r += kProducers / kUnits) {
        const int row = s.row[stage][first + r];
        const int64_t at = (base + int64_t(max(row, 0)) * D) * 2;
        copy<16>(to + r * 128, static_cast<const char*>(a.q) + at, row >= 0);
        copy<16>(to + Shared<D>::kTile + r * 128, static_cast<const char*>(a.grad_out) + at,
                 row >= 0);
      }
    }
    copies_arrive(&s.full[stage]);
    if (++stage == Shared<D>::kStages) stage = 0, ++round;
  }

  // Entries first .. last - 1 of col_chunk, for the heads from bh on.
  __device__ void walk(int64_t bh, int64_t first, int64_t last) {
    const int lane = threadIdx.x % 32;
    const bool leader = threadIdx.x % kProducers < 32;  // this warp fills the queue
    int at = 0, left = 0;                               // the queue's head, what waits there
    int32_t next = leader && first + lane < last ? w.col_chunk[first + lane] : -1;
    uint64_t next_chose = leader && next >= 0 && w.col_chose ? w.col_chose[first + lane] : ~0ull;
    for (int64_t from = first; from < last; from += 32) {
      meet(2, kProducers);  // nobody reads the queue
      if (leader) {
        const int32_t entry = next;
        uint64_t chose = entry >= 0 ? next_chose : 0;
        const int64_t e = from + 32 + lane;
        next = e < last ? w.col_chunk[e] : -1;
        next_chose = next >= 0 && w.col_chose ? w.col_chose[e] : ~0ull;
        int query = 0;
        if (entry >= 0) {
          const int chunk = entry & ~kMasked;
          query = w.q_first[chunk];
          const int tokens = w.q_first[chunk + 1] - query;
          if (tokens < 64) chose &= (1ull << tokens) - 1;
          query |= entry & kMasked;
        }
        // What is left moves to the front; each lane appends its entry's tokens behind.
        const int kept0 = lane < left ? s.queue[at + lane] : 0;
        const int kept1 = lane + 32 < left ? s.queue[at + 32 + lane] : 0;
        int sum = __popcll(chose);
        const int mine = sum;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
          const int before = __shfl_up_sync(~0u, sum, step);
          if (lane >= step) sum += before;
        }
        __syncwarp();
        if (lane < left) s.queue[lane] = kept0;
        if (lane + 32 < left) s.queue[lane + 32] = kept1;
        int to = left + sum - mine;
        for (; chose; chose &= chose - 1) s.queue[to++] = query + __ffsll(chose) - 1;
        if (lane == 31) s.queued = left + sum;
      }
      meet(2, kProducers);
      const int queued = s.queued;
      const int least = from + 32 < last ? slots : 1;  // in the end also an item that is not full
      for (at = 0; queued - at >= least; at += slots) item(bh, at, min(slots, queued - at));
      left = max(0, queued - at);
    }
  }
};

// P^T of the pairs that the element masks hide becomes 0.
template <int D>
__device__ void hide(float (&p)[32], const Shared<D>& s, int stage, int slots,
                     const BlockSparseGpu& a, int64_t b, int key0, int key1) {
  const bool valid0 = !a.key_valid || a.key_valid[b * a.Nk + key0];
  const bool valid1 = !a.key_valid || a.key_valid[b * a.Nk + key1];
  const int32_t rank0 = a.rank_k ? a.rank_k[key0] : 0, rank1 = a.rank_k ? a.rank_k[key1] : 0;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int query = s.query[stage][(i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2) % slots];
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

template <class T, int D>
__device__ void consume(Shared<D>& s, const BlockSparseGpu& a, const BlockWalk& w,
                        const GradWork& work, const GradTask& task, int slots) {
  const int lane = threadIdx.x % 32, r = threadIdx.x / 32 * 16 + lane / 4;  // rows r, r + 8
  const int64_t bg = task.column / w.P, b = bg / w.G;
  const int first = w.key_first[task.column % w.P];
  const int size = w.key_first[task.column % w.P + 1] - first;
  const int key0 = first + min(r, size - 1), key1 = first + min(r + 8, size - 1);
  const float by = a.scale * kLog2e;
  float dk[D / 2] = {}, dv[D / 2] = {}, p[32] = {}, dp[32] = {};
  pin(dk), pin(dv), pin(p), pin(dp);
  const uint32_t k = shared_address(s.key_value[0]), v = shared_address(s.key_value[1]);
  barrier_wait(&s.loaded, 0);
  for (int stage = 0, round = 0;;) {
    barrier_wait(&s.full[stage], round & 1);
    if (s.end[stage]) break;
    fence_async();  // the rows came by ordinary copies
    const uint32_t q = shared_address(s.tile[stage][0]), o = shared_address(s.tile[stage][1]);
    pin(p), pin(dp);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < D / 16; ++i) wgmma<T>(p, k_major(k, i), k_major(q, i), i > 0);
    wgmma_commit();
#pragma unroll
    for (int i = 0; i < D / 16; ++i) wgmma<T>(dp, k_major(v, i), k_major(o, i), i > 0);
    wgmma_commit();
    // Meanwhile: is any query's chunk masked?
    const int query0 = s.query[stage][lane], query1 = s.query[stage][lane + 32];
    const bool masked =
        __any_sync(~0u, (query0 >= 0 && query0 & kMasked) || (query1 >= 0 && query1 & kMasked));
    const float4* stats = reinterpret_cast<const float4*>(s.stats[stage]) + lane % 4;
    wgmma_wait<1>();
    pin(p);
#pragma unroll
    for (int j = 0; j < 8; ++j) {  // columns 8j + 2 (lane % 4), and the next one
      const float4 x = stats[j * 4];
      p[4 * j + 0] = exp2_fast(fmaf(p[4 * j + 0], by, -x.x));
      p[4 * j + 1] = exp2_fast(fmaf(p[4 * j + 1], by, -x.z));
      p[4 * j + 2] = exp2_fast(fmaf(p[4 * j + 2], by, -x.x));
      p[4 * j + 3] = exp2_fast(fmaf(p[4 * j + 3], by, -x.z));
    }
    if (masked) hide(p, s, stage, slots, a, b, key0, key1);
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
    wgmma_wait<0>();
    pin(dk), pin(dv);
    if (lane == 0) barrier_arrive(&s.empty[stage]);
    if (++stage == Shared<D>::kStages) stage = 0, ++round;
  }
  // Rows r and r + 8, columns 8j + 2 (lane % 4) and the next one.
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = r + half * 8;
    if (row >= size) continue;
    const int64_t at = ((bg * a.Nk + first + row) * D) / 2 + lane % 4;
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
__global__ void __launch_bounds__(256, 2)
    grad_kv_kernel(const __grid_constant__ BlockSparseGpu a, const __grid_constant__ BlockWalk w,
                   const __grid_constant__ GradWork work, const __grid_constant__ CUtensorMap k,
                   const __grid_constant__ CUtensorMap v) {
  extern __shared__ unsigned char memory[];
  Shared<D>& s = *reinterpret_cast<Shared<D>*>(memory);
  if (int(blockIdx.x) >= work.totals[0]) return;
  const GradTask task = work.task[blockIdx.x];
  const int64_t bg = task.column / w.P;
  const int slots = 64 / w.heads;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shared<D>::kStages; ++i)
      barrier_init(&s.full[i], kProducers + 2), barrier_init(&s.empty[i], 4);
    barrier_init(&s.loaded, 1);
    barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    more_registers<224>();
    consume<T, D>(s, a, w, work, task, slots);
  } else {
    fewer_registers<32>();
    if (threadIdx.x == 128) {
      const int row = w.key_first[task.column % w.P];
      barrier_expect(&s.loaded, 2 * Shared<D>::kTile);
      tma_load_tile<D>(s.key_value[0], &k, &s.loaded, row, int(bg));
      tma_load_tile<D>(s.key_value[1], &v, &s.loaded, row, int(bg));
    }
    Producer<D> producer{s, a, w, work.stats, slots};
    const int64_t begin = bg * w.C * w.cap + w.col_start[bg * (w.P + 1) + task.column % w.P];
    const int M = int(a.H / a.G);
    for (int head = 0; head < M; head += w.heads)
      producer.walk(bg * M + head, begin + task.first, begin + task.last);
    producer.item(bg * M, 0, 0);
  }
}

template <class T, int D>
cudaError_t launch(const BlockSparseGpu& a, const BlockWalk& w, const GradWork& work,
                   cudaStream_t stream) {
  CUtensorMap k, v;
  cudaError_t error = tensor_map(&k, a.k, a.half, D, a.Nk, a.B * a.G, 64, 1);
  if (error == cudaSuccess) error = tensor_map(&v, a.v, a.half, D, a.Nk, a.B * a.G, 64, 1);
  if (error != cudaSuccess) return error;
  const auto kernel = grad_kv_kernel<T, D>;
  const int bytes = sizeof(Shared<D>);
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const int64_t ctas = w.B * w.G * w.P + 2 * kTarget;
  kernel<<<unsigned(ctas), 256, bytes, stream>>>(a, w, work, k, v);
  return cudaGetLastError();
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
