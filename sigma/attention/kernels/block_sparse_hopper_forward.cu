// The forward of block-sparse attention on Hopper.
//
// One warpgroup (128 threads) is one CTA and walks one chunk; block_sparse_hopper_forward.h has the
// equations. For wide heads and many chunks block_sparse_hopper_forward_shared.cu is faster.
//
// In time, of one CTA (three, or four of D = 64, share an SM: while this one does its softmax, the
// tensor cores work for the others):
//
//     tensor cores   S0 |           | P0 V0, S1 |           | P1 V1, S2 | ...
//     registers         | softmax 0 |           | softmax 1 |
//     copy engine    K0 V0 K1 | K2, V1 ...      | V2, K3    | ...       into two slots of each
#include "sigma/attention/kernels/block_sparse_hopper_forward.h"
#include "sigma/attention/kernels/block_sparse_hopper_pairs.h"
#include "sigma/attention/kernels/block_sparse_hopper_tokens.h"

namespace sigma::kernels {
namespace {

using namespace hopper;

// Steps of 16 columns of Q in registers; there is no room for all 8 of D = 128.
template <int D>
constexpr int kHeld = D == 128 ? 7 : D / 16;

template <int D>
constexpr int kSlots = D == 128 ? 2 : 3;

// What a CTA keeps in shared memory. Registers are scarce: the walk's state is here, too.
template <class T, int D>
struct Shared {
  T k[kSlots<D>][kPiece * D],
      v[kSlots<D>][kPiece * D];               // entry e of the walk lies in slot e % kSlots
  T q[kHeld<D> < D / 16 ? kPiece * 64 : 64];  // the last 64 columns, for the steps not held
  uint64_t full_q, full_k[kSlots<D>], full_v[kSlots<D>], freed;
  Entry entry[128];  // the walk's entry e at e % 128
  int rank_q[64];    // by token
  int b, bg;
};

template <class T, int D, int ctas>
__global__ void __launch_bounds__(128, ctas)
    forward_kernel(const __grid_constant__ ForwardParams p) {
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<Shared<T, D>*>(memory);
  constexpr int slots = kSlots<D>;
  const BlockWalk& w = p.w;
  const int lane = threadIdx.x % 32, warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  const int row = threadIdx.x / 32 * 16 + lane / 4;
  const int token0 = token_of(w, row), token1 = token_of(w, row + 8);

  // The work of this CTA. One (b, g)'s chunks run together, so that its K and V stay in the L2
  // cache; late chunks first, whose walks are the longest if causal.
  const int C = int(w.C), chunk = C - 1 - int(blockIdx.x / p.head_tiles % C);
  const int bg = blockIdx.x / p.head_tiles / C;
  if (p.skips(bg, chunk)) return;
  const int q_first = w.q_first[chunk];
  const int count = w.count[int64_t(bg) * C + chunk];
  const auto first_head = [&] {
    return bg * int(p.a.H / p.a.G) + int(blockIdx.x % p.head_tiles) * w.heads;
  };

  if (threadIdx.x < 64) shared.rank_q[threadIdx.x] = rank_of(p, chunk, threadIdx.x);
  if (threadIdx.x == 0) {
    shared.bg = bg;
    shared.b = bg / int(w.G);
    barrier_init(&shared.full_q, 1);
    for (int i = 0; i < slots; ++i) barrier_init(&shared.full_k[i], 1);
    for (int i = 0; i < slots; ++i) barrier_init(&shared.full_v[i], 1);
    barrier_init(&shared.freed, 4);
    barrier_init_fence();
  }
  // The entries e0 + thread of the walk come into shared memory, two halves of 64 by turns.
  const auto fetch = [&](int e) {
    if (e < count)
      shared.entry[e % 128] = entry_at(w, (int64_t(shared.bg) * C + chunk) * w.cap + e);
  };
  __syncthreads();
  fetch(threadIdx.x);
  __syncthreads();

  // By one thread of warp 0: ask for K or V of an entry.
  const auto load_k = [&](int e) {
    if (e >= count) return;
    barrier_expect(&shared.full_k[e % slots], kPiece * D * 2);
    tma_load_tile<D>(shared.k[e % slots], &p.k, &shared.full_k[e % slots],
                     shared.entry[e % 128].first, shared.bg);
  };
  const auto load_v = [&](int e) {
    if (e >= count) return;
    barrier_expect(&shared.full_v[e % slots], kPiece * D * 2);
    tma_load_tile<D>(shared.v[e % slots], &p.v, &shared.full_v[e % slots],
                     shared.entry[e % 128].first, shared.bg);
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
    tma_load_tile<D>(shared.v[slots - 1], &p.q, &shared.full_q, q_first, first_head());
    if (kHeld<D> < D / 16) tma_load(shared.q, &p.q, &shared.full_q, D - 64, q_first, first_head());
    for (int e = 0; e < slots; ++e) {
      load_k(e);
      if (e + 1 < slots) load_v(e);
    }
  }
  uint32_t q[kHeld<D>][4];
  barrier_wait(&shared.full_q, 0);
#pragma unroll
  for (int s = 0; s < kHeld<D>; ++s) load_operand(q[s], shared_address(shared.v[slots - 1]), s);
  fence_async();
  __syncthreads();
  if (warp == 0 && elect()) load_v(slots - 1);

  float o[D / 2], s[32], m0 = kLow, m1 = kLow, l0 = 0, l1 = 0;
#pragma unroll
  for (int i = 0; i < D / 2; ++i) o[i] = 0;

  const auto issue_scores = [&](int e) {
    barrier_wait(&shared.full_k[e % slots], e / slots & 1);
    scores<T, D>(s, q, shared.q, shared.k[e % slots]);
  };

  if (count > 0) {
    issue_scores(0);
    wgmma_wait<0>();
    pin(s);
    freed(0);
    if (warp == 0 && elect()) load_k(slots);
  }
#pragma unroll 1
  for (int e = 0; e < count; ++e) {
    if (e % 64 == 32 && e > 64 && threadIdx.x < 64) fetch(e + 32 + threadIdx.x);
    const Entry& entry = shared.entry[e % 128];
    if (entry.end & kMasked)
      hide(s, p, shared.b, entry.first, entry.end & ~kMasked, shared.rank_q[token0],
           shared.rank_q[token1]);
    const uint64_t chosen = entry.chosen;
    uint32_t a[4][4];
    weights<T>(a, s, o, m0, m1, l0, l1, chosen >> token0 & 1, chosen >> token1 & 1, p);

    barrier_wait(&shared.full_v[e % slots], e / slots & 1);
    add_values<T>(o, a, shared.v[e % slots]);
    if (e + 1 < count) issue_scores(e + 1);
    wgmma_wait<0>();
    pin(o);
    pin(s);
    freed(e + 1);
    if (warp == 0 && elect()) {
      load_v(e + slots);
      load_k(e + 1 + slots);
    }
  }

  store_rows<T>(p, o, m0, m1, l0, l1, row, row + 8, first_head(), q_first, w.q_first[chunk + 1]);
}

template <class T, int D, int ctas>
cudaError_t launch(const ForwardParams& p, cudaStream_t stream) {
  const auto kernel = forward_kernel<T, D, ctas>;
  const int bytes = sizeof(Shared<T, D>);
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const int64_t items = p.a.B * p.a.G * p.w.C * p.head_tiles;
  if (items > 0) kernel<<<dim3(items), 128, bytes, stream>>>(p);
  return cudaGetLastError();
}

// Whether the chunks are more than run at the same time, three an SM.
bool many(const BlockSparseGpu& a, const BlockWalk& w) {
  return a.B * a.H / w.heads * w.C > 3 * 132;
}

// Whether strips may go by pieces: few heads share a list, so that few of a chunk's rows agree.
bool pieces_allowed(const BlockSparseGpu& a, const BlockWalk& w) {
  const int64_t most = w.lists.n * w.lists.pieces_a_block;
  return w.chose && w.heads == a.H / a.G && (w.heads == 1 || w.heads == 2 || w.heads == 4) &&
         most > 0 && most <= 64 && w.P <= 8192 && many(a, w);
}

}  // namespace

int64_t block_sparse_hopper_forward_bytes(const BlockSparseGpu& a, const BlockWalk& w) {
  int64_t bytes = 0;
  if (pieces_allowed(a, w)) pair_work(a, w, nullptr, &bytes);
  return bytes;
}

cudaError_t block_sparse_hopper_forward(const BlockSparseGpu& a, const BlockWalk& w, void* memory,
                                        cudaStream_t stream) {
  if (a.D != a.Dv || (a.D != 64 && a.D != 128)) return cudaErrorInvalidValue;
  if (a.Nq == 0 || a.B * a.H == 0) return cudaSuccess;
  ForwardParams p;
  cudaError_t error = forward_params(p, a, w);
  if (error == cudaSuccess && pieces_allowed(a, w)) {
    int64_t bytes;
    const PairWork work = pair_work(a, w, memory, &bytes);
    p.by_pieces = work.item_count, p.strip = work.strip / w.tokens, p.strips = work.strips;
    error = sort_pairs(w, work, stream);
    if (error == cudaSuccess) error = forward_pieces(p, work, stream);
  }
  if (error != cudaSuccess) return error;
  if (a.D == 64)
    return a.half ? launch<__half, 64, 4>(p, stream) : launch<__nv_bfloat16, 64, 4>(p, stream);
  if (many(a, w)) {  // shared loads pay once the chunks are more than run at the same time anyway
    // A warp a token pays where lists differ; how they are is known on the GPU alone.
    p.either = w.heads >= 8 && TokenRows::fit(w);
    if (p.either) error = forward_tokens(p, stream);
    return error == cudaSuccess ? forward_shared(p, stream) : error;
  }
  return a.half ? launch<__half, 128, 3>(p, stream) : launch<__nv_bfloat16, 128, 3>(p, stream);
}

}  // namespace sigma::kernels
