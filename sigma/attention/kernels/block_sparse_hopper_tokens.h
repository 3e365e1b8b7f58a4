// Token rows on Hopper where the heads of a key/value head fill the 16 rows of mma.sync: a warp has
// one token (16 heads of it; several tokens where the heads are few), a CTA the tokens of up to
// kWalks neighbouring chunks. A warpgroup's instruction, with its 64 rows, would multiply four
// tokens with every piece that one of them chose.
//
// A producer warp merges the chunks' walks, ascending, and brings every piece into shared memory
// once, for all the warps that chose it. Tiles lie in a ring of slots: those of position p in slot
// p % slots. CTAs stay and take item after item (an item: the chunks of a CTA and 64 heads at most);
// warps go their own ways, no further apart than the ring is deep, also from one item to the next:
//
//     producer                       barriers                       warps
//     item  ->  its queries' tiles       full[slot] ->  "start": store the last item's sums, keep
//                                                        the queries as operands A
//     piece ->  K and V                  full[slot] ->  of those who chose it: products
//                                        empty[slot] <-  arrive; the producer does for the others
//
// Each warp has a ring of entries of its own, what it has to do next. Nothing can wait in a circle:
// the oldest entry that is not done is the next one of all its warps, and its tiles are on their way.
#pragma once

#include <climits>

#include "sigma/attention/kernels/block_walk.h"
#include "sigma/attention/kernels/hopper.h"
#include "sigma/attention/kernels/mma.h"

namespace sigma::kernels::hopper {

constexpr int kWalks = 3;
constexpr int kStart = -1, kStop = -2;

struct Entry {
  int first, end;   // keys; end perhaps | kMasked. kStart: first query, kStart. kStop: nothing more
  int position;     // of K, then V; kStart: of the queries' tiles
  uint32_t chosen;  // by which of the warp's tokens; kStart: first head
};

// What comes next: a piece, or the start of an item. With it goes for each warp by which of its tokens
// the piece is chosen; kStart: its first query.
struct Step {
  int first, end;     // keys, as in Entry; kStart: item, kStart; kStop: nothing more
  uint32_t visitors;  // bit i: warp i
};

// Who has which rows of a CTA's chunks.
struct TokenRows {
  int tokens, heads;  // of a chunk
  int warp_tokens;    // of a warp, all with the same 16 heads, or fewer
  int head_parts;     // of 16 heads
  int warps;          // of a chunk
  int chunks;         // of a CTA
  int groups, tiles;  // CTAs' chunks of a (b, g); tiles of heads
  int group_heads;    // H / G
  int64_t items;

  TokenRows(const BlockSparseGpu& a, const BlockWalk& w, int warps_a_cta) {
    tokens = w.tokens, heads = w.heads;
    warp_tokens = heads < 16 ? 16 / heads : 1;
    head_parts = (heads + 15) / 16;
    warps = (tokens + warp_tokens - 1) / warp_tokens * head_parts;
    chunks = warps_a_cta / warps < kWalks ? warps_a_cta / warps : kWalks;
    groups = int((w.C + chunks - 1) / chunks);
    group_heads = int(a.H / a.G);
    tiles = group_heads / heads;
    items = a.B * a.G * groups * tiles;
  }
  // Of an item. One (b, g)'s run together, so that its K and V stay in the L2 cache; late chunks
  // first, whose walks are the longest if causal.
  __device__ int bg(int item) const { return item / tiles / groups; }
  __device__ int chunk(int item) const { return (groups - 1 - item / tiles % groups) * chunks; }
  __device__ int head(int item) const { return bg(item) * group_heads + item % tiles * heads; }
};

// The tokens and heads of a warp.
struct TokenPlace {
  int chunk, token, head;  // of the CTA's; the first of the chunk's
  __device__ TokenPlace(const TokenRows& rows, int warp) {
    chunk = warp / rows.warps;
    token = warp % rows.warps / rows.head_parts * rows.warp_tokens;
    head = warp % rows.head_parts * 16;
  }
};

template <int D, int W, int kSlots>
struct TokenShared {
  static constexpr int slots = kSlots, warps = W, kTile = 64 * D * 2;
  static constexpr int kRing = 16;  // entries of a warp that are not done: at most slots, and kStop
  static_assert(slots < kRing);
  alignas(1024) unsigned char tile[slots][kTile];
  Entry ring[W][kRing];
  uint64_t listed[W][kRing], full[slots], empty[slots];
  // Of a warp's 16 rows: the row of the chunk, head * tokens + token, or 64: none; which of the
  // warp's tokens.
  int2 row[W][16];
  int2 item[W];  // what a warp works at: first query, first head
  // From the warp that merges to the one that loads.
  static constexpr int kQueue = 8;
  Step queue[kQueue];
  uint32_t of_warp[kQueue][W];
  uint64_t filled[kQueue], taken[kQueue];

  // By all threads, before all else.
  __device__ void start(const TokenRows& rows) {
    if (threadIdx.x == 0) {
#pragma unroll 1
      for (int i = 0; i < slots; ++i) barrier_init(full + i, 1), barrier_init(empty + i, W);
#pragma unroll 1
      for (int i = 0; i < W * kRing; ++i) barrier_init(listed[0] + i, 1);
#pragma unroll 1
      for (int i = 0; i < kQueue; ++i) barrier_init(filled + i, 1), barrier_init(taken + i, 1);
      barrier_init_fence();
    }
    if (threadIdx.x < W * 16) {
      const TokenPlace place(rows, threadIdx.x / 16);
      const int r = threadIdx.x % 16, token = r % rows.warp_tokens;
      const int h = place.head + r / rows.warp_tokens, t = place.token + token;
      const bool real = h < rows.heads && t < rows.tokens;
      row[threadIdx.x / 16][r] = make_int2(real ? h * rows.tokens + t : 64, token);
    }
    __syncthreads();
  }
  // By a warp: position p has come; it is done with it.
  __device__ uint32_t wait(int p) {
    barrier_wait(full + p % slots, p / slots & 1);
    return shared_address(tile[p % slots]);
  }
  __device__ void done(int p) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(empty + p % slots);
  }
  // Entry n of a warp.
  __device__ const Entry& next(int warp, int n) {
    barrier_wait(&listed[warp][n % kRing], n / kRing & 1);
    return ring[warp][n % kRing];
  }
  __device__ void list(int warp, int n, const Entry& entry) {
    ring[warp][n % kRing] = entry;
    barrier_arrive(&listed[warp][n % kRing]);
  }
};

// The warp that merges the chunks' walks. It reads up to kAhead entries of each, a lane one, as far as
// all of them have come, and takes first what its visitors had the least to do before.
template <class S>
__device__ inline void merge(S& shared, const BlockWalk& w, const TokenRows& rows) {
  constexpr int W = S::warps, kAhead = 32 / kWalks, kNone = kMasked - 1;
  static_assert(W <= 16);  // see `recent`
  const int lane = threadIdx.x % 32;
  const TokenPlace mine(rows, min(lane, W - 1));  // as lane i, of warp i
  const int chunk = lane / kAhead;                // as the reader of an entry
  const uint32_t tokens = (1u << rows.warp_tokens) - 1, group = (1u << kAhead) - 1;
  int n = 0;
  const auto push = [&](int first, int end, bool visit, uint32_t of_warp) {
    const uint32_t visitors = __ballot_sync(~0u, visit);
    barrier_wait(&shared.taken[n % S::kQueue], (n / S::kQueue & 1) ^ 1);
    if (lane < W) shared.of_warp[n % S::kQueue][lane] = of_warp;
    if (lane == 0) shared.queue[n % S::kQueue] = {first, end, visitors};
    __syncwarp();
    if (lane == 0) barrier_arrive(&shared.filled[n % S::kQueue]);
    ++n;
  };
  uint64_t recent = 0;  // visitors of the last four pieces
  for (int item = blockIdx.x; item < rows.items; item += gridDim.x) {
    const int chunk0 = rows.chunk(item), live = min(rows.chunks, int(w.C) - chunk0);
    const bool works = lane < W && mine.chunk < live;
    push(item, kStart, works, works ? w.q_first[chunk0 + mine.chunk] : 0);

    const int64_t walk = int64_t(rows.bg(item)) * w.C + chunk0 + chunk, base = walk * w.cap;
    const int left = chunk < live ? w.count[walk] : 0;
    for (int at = lane - chunk * kAhead;;) {
      int entry = kNone;
      uint64_t chose = 0;
      if (at < left) entry = w.piece[base + at], chose = w.chose[base + at];
      int piece = entry & ~kMasked, last = kNone;
#pragma unroll
      for (int i = 0; i < kWalks; ++i)
        last = min(last, __shfl_sync(~0u, piece, (i + 1) * kAhead - 1));
      const bool take = piece <= last && piece != kNone;
      const uint32_t taken = __ballot_sync(~0u, take);
      if (!taken) break;
      at += __popc(taken >> chunk * kAhead & group);
      if (!take) piece = ~lane;
      const uint32_t same = __match_any_sync(~0u, piece);
      const uint32_t masked = __ballot_sync(~0u, entry & kMasked);
      int first = 0, end = 0;
      if (take) {
        first = w.key_first[piece];
        end = w.key_first[piece + 1] | (masked & same ? kMasked : 0);
      }
      // Its visitors: those of all who read it.
      uint32_t own = 0, visitors = 0;
#pragma unroll 1
      for (int i = 0; i < rows.warps; ++i)
        if (chose >> i / rows.head_parts * rows.warp_tokens & tokens)
          own |= 1u << (chunk * rows.warps + i);
#pragma unroll
      for (int i = 0; i < kWalks; ++i) {
        const uint32_t readers = same >> i * kAhead & group;
        const uint32_t theirs = __shfl_sync(~0u, own, (i * kAhead + __ffs(readers) - 1) & 31);
        if (readers) visitors |= theirs;
      }
      // The first of those that read the same piece stands for it.
      bool candidate = take && __ffs(same) - 1 == lane && visitors;
      for (;;) {
        const int cost = __popcll(visitors * 0x1000100010001ull & recent);
        const int best = __reduce_min_sync(~0u, candidate ? cost * 32 + lane : INT_MAX);
        if (best == INT_MAX) break;
        const int s = best % 32;
        if (lane == s) candidate = false;
        const uint32_t chosen = __shfl_sync(~0u, visitors, s);
        recent = recent << 16 | chosen;
        // By which tokens of warp `lane` the piece of lane s is chosen.
        const uint32_t readers = __shfl_sync(~0u, same, s) >> mine.chunk * kAhead & group;
        const uint64_t by =
            __shfl_sync(~0u, chose, (mine.chunk * kAhead + __ffs(readers) - 1) & 31);
        push(__shfl_sync(~0u, first, s), __shfl_sync(~0u, end, s), chosen >> lane & 1,
             uint32_t(by >> mine.token) & tokens);
      }
    }
  }
  push(0, kStop, false, 0);
}

// The warp that waits for free slots, tells the visitors what they have to do, and asks for tiles;
// kQueries tensors of them start an item. Entries are listed when their slots are free: an earlier use
// of a slot that has not come could else be taken for this one.
template <int D, int kQueries, class S>
__device__ inline void load(S& shared, const TokenRows& rows,
                            const CUtensorMap* const (&queries)[kQueries], const CUtensorMap* k,
                            const CUtensorMap* v) {
  constexpr int slots = S::slots, W = S::warps;
  const int lane = threadIdx.x % 32;  // lane i lists the entries of warp i
  const TokenPlace mine(rows, min(lane, W - 1));
  int n = 0, position = 0, bg = 0;
  const auto wait = [&](int p) { barrier_wait(&shared.empty[p % slots], (p / slots & 1) ^ 1); };
  // By one thread: position p comes, for some of the warps.
  const auto load = [&](int p, int visitors, const CUtensorMap* map, int bytes, int row,
                        int outer) {
    if (visitors < W) barrier_arrive(&shared.empty[p % slots], W - visitors);
    barrier_expect(&shared.full[p % slots], bytes);
    tma_load_tile<D>(shared.tile[p % slots], map, &shared.full[p % slots], row, outer);
  };
  for (int i = 0;; ++i) {
    barrier_wait(&shared.filled[i % S::kQueue], i / S::kQueue & 1);
    const Step step = shared.queue[i % S::kQueue];
    const uint32_t mine_of = lane < W ? shared.of_warp[i % S::kQueue][lane] : 0;
    __syncwarp();
    if (lane == 0) barrier_arrive(&shared.taken[i % S::kQueue]);
    if (step.end == kStop) break;
    const bool visit = step.visitors >> lane & 1;
    if (step.end == kStart) {
      const int live = __popc(step.visitors) / rows.warps, head = rows.head(step.first);
      bg = rows.bg(step.first);
#pragma unroll 1
      for (int j = 0; j < live * kQueries; ++j) wait(position + j);
      if (visit)
        shared.list(lane, n++,
                    {int(mine_of), kStart, position + mine.chunk * kQueries, uint32_t(head)});
#pragma unroll 1
      for (int j = 0; j < live; ++j) {
        const int query = __shfl_sync(~0u, mine_of, j * rows.warps);
        if (elect()) {
#pragma unroll
          for (int i = 0; i < kQueries; ++i)
            load(position + j * kQueries + i, rows.warps, queries[i],
                 rows.tokens * rows.heads * D * 2, query, head);
        }
        __syncwarp();
      }
      position += live * kQueries;
      continue;
    }
    wait(position);
    __syncwarp();
    if (elect()) load(position, __popc(step.visitors), k, S::kTile, step.first, bg);
    __syncwarp();
    wait(position + 1);
    if (visit) shared.list(lane, n++, {step.first, step.end, position, mine_of});
    __syncwarp();
    if (elect()) load(position + 1, __popc(step.visitors), v, S::kTile, step.first, bg);
    position += 2;
  }
  if (lane < W) shared.list(lane, n, {0, kStop, 0, 0});
}

// ---- products of a warp, with tiles as the copy engine leaves them (hopper.h) --------------------

struct Operand {
  uint32_t a[4];  // of 16 columns
};

// Rows of a tile of queries as operands A; `row`: of the tile, for row lane % 16 of the warp.
template <int steps>
__device__ inline void load_rows(Operand (&to)[steps], uint32_t tile, int row) {
  const uint32_t at = row * 128 + ((threadIdx.x % 32 / 16 ^ row % 8) << 4);
#pragma unroll
  for (int s = 0; s < steps; ++s) load_matrix(to[s].a, tile + s / 4 * 8192 + (at ^ s % 4 * 32));
}

// s = A tile^T, summed over D; s[4j ..]: columns (rows of the tile) 8j .. A: operands [0, D / 16).
template <class T, int D, int n, class A>
__device__ inline void multiply_transposed(float (&s)[n], const A& operands, uint32_t tile) {
  const int lane = threadIdx.x % 32;
  const uint32_t at = tile + (lane / 16 * 8 + lane % 8) * 128 + ((lane / 8 % 2 ^ lane % 8) << 4);
#pragma unroll
  for (int i = 0; i < n; ++i) s[i] = 0;
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    const Operand& x = operands[k];
#pragma unroll
    for (int j = 0; j < n / 8; ++j) {
      uint32_t b[4];
      load_matrix(b, (at ^ k % 4 * 32) + k / 4 * 8192 + j * 2048);
      mma<T>(reinterpret_cast<float(&)[4]>(s[8 * j]), x.a, b[0], b[1]);
      mma<T>(reinterpret_cast<float(&)[4]>(s[8 * j + 4]), x.a, b[2], b[3]);
    }
  }
}

// o += A tile, summed over 16 steps rows of the tile; o[4j ..]: columns 8j ..
template <class T, int n, int steps>
__device__ inline void multiply(float (&o)[n], const uint32_t (&a)[steps][4], uint32_t tile) {
  const int lane = threadIdx.x % 32;
  const uint32_t at = tile + lane % 16 * 128 + ((lane / 16 ^ lane % 8) << 4);
#pragma unroll
  for (int k = 0; k < steps; ++k) {
#pragma unroll
    for (int j = 0; j < n / 8; ++j) {
      uint32_t b[4];
      load_matrix_transposed(b, (at ^ j % 4 * 32) + j / 4 * 8192 + k * 2048);
      mma<T>(reinterpret_cast<float(&)[4]>(o[8 * j]), a[k], b[0], b[1]);
      mma<T>(reinterpret_cast<float(&)[4]>(o[8 * j + 4]), a[k], b[2], b[3]);
    }
  }
}

// ---- host ---------------------------------------------------------------------------------------

// As many CTAs as the GPU runs at a time, or items.
template <class Params>
cudaError_t launch_tokens(void (*kernel)(Params), const Params& p, int64_t items, int threads,
                          int bytes, cudaStream_t stream) {
  int device = 0, at_once = 0;
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess) error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&at_once, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess || items == 0) return error;
  kernel<<<unsigned(items < at_once ? items : at_once), threads, bytes, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace sigma::kernels::hopper
