// The forward where neighbouring chunks visit mostly the same pieces: three chunks a CTA, and what
// several of them visit comes into shared memory once. With a chunk a CTA the L2 cache, not the
// tensor cores, sets the pace: 32 KB of K and V (D 128) for 2 million operations of each of them.
//
// Warps 0 .. 11 are three warpgroups, a chunk each; block_sparse_hopper_forward.h has the equations.
// Warp 12 is the producer: it merges the three walks in ascending order of pieces. Per entry of the
// merged walk it waits for a free slot, lists the entry in the rings of those who visit it, and asks
// the copy engine for K and V.
//
//     producer                     slot barriers                        warpgroup
//     wait empty[slot]         <-  empty: 4 warps of each, 4 W
//     ring[visitor] = entry    ->  listed[visitor]                  ->  wait listed
//     arrive for who is absent     (empty)
//     load K, V                ->  full_k[slot], full_v[slot]       ->  S = Q K^T, softmax, O += P V
//                                  empty                            <-  arrive
#include <climits>

#include "sigma/attention/kernels/block_sparse_hopper_forward.h"

namespace sigma::kernels {
namespace {

using namespace hopper;

constexpr int W = kChunksACta;  // and warpgroups
constexpr int kRing = 8;        // entries listed and not yet done: at most slots, and the end
constexpr int kEnd = -1;        // as an entry's end: no more entries

// Steps of 16 columns of Q in registers; there is no room for all 8 of D = 128.
template <int D>
constexpr int kHeld = D == 128 ? 5 : D / 16;
template <int D>
constexpr int kSlots = 6;

template <class T, int D>
struct Shared {
  T k[kSlots<D>][kPiece * D], v[kSlots<D>][kPiece * D];  // entry e of the merged walk: e % slots
  T q[W][kHeld<D> < D / 16 ? kPiece * 64 : 64];  // the last 64 columns, for the steps not held
  uint64_t full_q, q_read, full_k[kSlots<D>], full_v[kSlots<D>], empty[kSlots<D>];
  // For each warpgroup its next entries, entry n of its walk at n % kRing.
  uint64_t listed[W][kRing];
  Entry ring[W][kRing];
  int number[W][kRing];  // in the merged walk
  // The producer's view of each walk, entry n at n % 64, filled 32 at a time.
  Entry table[W][64];
  int piece[W][64], count[W];
  int rank_q[W][64];  // by token
};

// Entry n of walk i comes into the table; a warp calls it for 32 n.
template <class S>
__device__ inline void fetch(const BlockWalk& w, S& shared, int64_t walk, int i, int n) {
  int piece = INT_MAX;
  if (n < shared.count[i]) {
    const int64_t at = (walk + i) * w.cap + n;
    piece = w.piece[at] & ~kMasked;
    shared.table[i][n % 64] = entry_at(w, at);
  }
  shared.piece[i][n % 64] = piece;
}

template <class T, int D>
__device__ inline void produce(const ForwardParams& p, Shared<T, D>& shared, int bg, int head,
                               int chunk0) {
  constexpr int slots = kSlots<D>;
  const BlockWalk& w = p.w;
  const int lane = threadIdx.x % 32, live = min(int64_t(W), w.C - chunk0);
  const int64_t walk = int64_t(bg) * w.C + chunk0;
  if (elect()) {
    // Q comes through the last slots of V.
    const int columns = D + (kHeld<D> < D / 16 ? 64 : 0);
    barrier_expect(&shared.full_q, live * w.tokens * w.heads * columns * 2);
    for (int i = 0; i < live; ++i) {
      const int query = w.q_first[chunk0 + i];
      tma_load_tile<D>(shared.v[slots - 1 - i], &p.q, &shared.full_q, query, head);
      if (kHeld<D> < D / 16) tma_load(shared.q[i], &p.q, &shared.full_q, D - 64, query, head);
    }
  }
  if (lane < W) shared.count[lane] = lane < live ? w.count[walk + lane] : 0;
  __syncwarp();
  for (int i = 0; i < W; ++i) {
    fetch(w, shared, walk, i, lane);
    fetch(w, shared, walk, i, lane + 32);
  }
  int at = 0;  // lane i < W: the next entry of walk i
#pragma unroll 1
  for (int e = 0;; ++e) {
    const int slot = e % slots;
    __syncwarp();
    const int mine = lane < W ? shared.piece[lane][at % 64] : INT_MAX;
    const Entry entry = shared.table[lane < W ? lane : 0][at % 64];
    const int piece = __reduce_min_sync(~0u, mine);
    if (piece == INT_MAX) break;
    const bool visit = lane < W && mine == piece;
    const uint32_t visitors = __ballot_sync(~0u, visit);
    const int first = __shfl_sync(~0u, entry.first, __ffs(visitors) - 1);
    barrier_wait(&shared.empty[slot], (e / slots & 1) ^ 1);
    if (visit) {
      shared.ring[lane][at % kRing] = entry;
      shared.number[lane][at % kRing] = e;
      barrier_arrive(&shared.listed[lane][at % kRing]);
      ++at;
    }
    if (e == slots - W) barrier_wait(&shared.q_read, 0);  // the slots that held Q
    __syncwarp();
    if (elect()) {
      const int absent = W - __popc(visitors);
      if (absent) barrier_arrive(&shared.empty[slot], 4 * absent);
      barrier_expect(&shared.full_k[slot], kPiece * D * 2);
      tma_load_tile<D>(shared.k[slot], &p.k, &shared.full_k[slot], first, bg);
      barrier_expect(&shared.full_v[slot], kPiece * D * 2);
      tma_load_tile<D>(shared.v[slot], &p.v, &shared.full_v[slot], first, bg);
    }
    __syncwarp();
    // Who enters one half of its table has the other filled.
    uint32_t fill = __ballot_sync(~0u, visit && at % 32 == 0);
    for (; fill; fill &= fill - 1) {
      const int i = __ffs(fill) - 1;
      fetch(w, shared, walk, i, __shfl_sync(~0u, at, i) + 32 + lane);
    }
  }
  if (lane < W) {
    shared.ring[lane][at % kRing].end = kEnd;
    barrier_arrive(&shared.listed[lane][at % kRing]);
  }
}

template <class T, int D>
__device__ inline void consume(const ForwardParams& p, Shared<T, D>& shared, int bg, int head,
                               int chunk, int wg) {
  constexpr int slots = kSlots<D>;
  const BlockWalk& w = p.w;
  const int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane / 4;
  const int token0 = token_of(w, row), token1 = token_of(w, row + 8);

  uint32_t q[kHeld<D>][4];
  barrier_wait(&shared.full_q, 0);
#pragma unroll
  for (int s = 0; s < kHeld<D>; ++s)
    load_operand(q[s], shared_address(shared.v[slots - 1 - wg]), s);
  fence_async();
  __syncwarp();
  if (lane == 0) barrier_arrive(&shared.q_read);

  float o[D / 2], s[32], m0 = kLow, m1 = kLow, l0 = 0, l1 = 0;
#pragma unroll
  for (int i = 0; i < D / 2; ++i) o[i] = 0;
  const auto issue_scores = [&](int e) {  // of entry e of the merged walk
    barrier_wait(&shared.full_k[e % slots], e / slots & 1);
    scores<T, D>(s, q, shared.q[wg], shared.k[e % slots]);
  };

  int e = 0;
  barrier_wait(&shared.listed[wg][0], 0);
  bool more = shared.ring[wg][0].end != kEnd;
  if (more) {
    e = shared.number[wg][0];
    issue_scores(e);
    wgmma_wait<0>();
    pin(s);
  }
#pragma unroll 1
  for (int n = 0; more; ++n) {
    const Entry& entry = shared.ring[wg][n % kRing];
    if (entry.end & kMasked)
      hide(s, p, bg / int(w.G), entry.first, entry.end & ~kMasked, shared.rank_q[wg][token0],
           shared.rank_q[wg][token1]);
    const uint64_t chosen = entry.chosen;
    uint32_t a[4][4];
    weights<T>(a, s, o, m0, m1, l0, l1, chosen >> token0 & 1, chosen >> token1 & 1, p);

    barrier_wait(&shared.full_v[e % slots], e / slots & 1);
    add_values<T>(o, a, shared.v[e % slots]);
    // If the next entry is known, its scores follow at once. If not, this slot must come free first:
    // the producer may be waiting for it.
    const int last = e, next = (n + 1) % kRing, parity = (n + 1) / kRing & 1;
    const bool early = __all_sync(~0u, barrier_test(&shared.listed[wg][next], parity));
    if (!early) {
      wgmma_wait<0>();
      pin(o);
      if (lane == 0) barrier_arrive(&shared.empty[last % slots]);
      barrier_wait(&shared.listed[wg][next], parity);
    }
    more = shared.ring[wg][next].end != kEnd;
    if (more) {
      e = shared.number[wg][next];
      issue_scores(e);
    }
    if (early) {
      if (more) wgmma_wait<1>();
      else wgmma_wait<0>();
      pin(o);
      if (lane == 0) barrier_arrive(&shared.empty[last % slots]);
    }
    wgmma_wait<0>();
    pin(s);
    pin(o);
  }
  if (chunk < w.C)
    store_rows<T>(p, o, m0, m1, l0, l1, row, row + 8, head, w.q_first[chunk], w.q_first[chunk + 1]);
}

template <class T, int D>
__global__ void __launch_bounds__(128 * (W + 1), 1)
    forward_shared_kernel(const __grid_constant__ ForwardParams p) {
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<Shared<T, D>*>(memory);
  const BlockWalk& w = p.w;
  if (p.either && !alike(w)) return;
  // One (b, g)'s chunks run together, the late ones first, as in the kernel of single chunks.
  const int groups = int((w.C + W - 1) / W), item = blockIdx.x / p.head_tiles;
  const int bg = item / groups, chunk0 = (groups - 1 - item % groups) * W;
  if (p.skips(bg, chunk0)) return;
  const int head = bg * int(p.a.H / p.a.G) + int(blockIdx.x % p.head_tiles) * w.heads;
  for (int i = threadIdx.x; i < 64 * W; i += blockDim.x)
    shared.rank_q[i / 64][i % 64] = rank_of(p, min(chunk0 + i / 64, int(w.C) - 1), i % 64);
  if (threadIdx.x == 0) {
    barrier_init(&shared.full_q, 1);
    barrier_init(&shared.q_read, 4 * W);
    for (int i = 0; i < kSlots<D>; ++i) {
      barrier_init(&shared.full_k[i], 1);
      barrier_init(&shared.full_v[i], 1);
      barrier_init(&shared.empty[i], 4 * W);
    }
    for (int i = 0; i < W * kRing; ++i) barrier_init(&shared.listed[0][i], 1);
    barrier_init_fence();
  }
  __syncthreads();
  const int wg = __shfl_sync(~0u, threadIdx.x / 128, 0);
  if (wg == W) {
    fewer_registers<32>();
    if (threadIdx.x / 32 == 4 * W) produce(p, shared, bg, head, chunk0);
  } else {
    more_registers<160>();
    consume(p, shared, bg, head, chunk0 + wg, wg);
  }
}

template <class T, int D>
cudaError_t launch(const ForwardParams& p, cudaStream_t stream) {
  const auto kernel = forward_shared_kernel<T, D>;
  const int bytes = sizeof(Shared<T, D>);
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const int64_t items = p.a.B * p.a.G * ((p.w.C + W - 1) / W) * p.head_tiles;
  if (items > 0) kernel<<<dim3(items), 128 * (W + 1), bytes, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace

cudaError_t hopper::forward_shared(const ForwardParams& p, cudaStream_t stream) {
  return p.a.half ? launch<__half, 128>(p, stream) : launch<__nv_bfloat16, 128>(p, stream);
}

}  // namespace sigma::kernels
