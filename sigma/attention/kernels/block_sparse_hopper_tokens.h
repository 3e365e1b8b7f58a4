// Token rows on Hopper where 16 rows of mma.sync hold the heads of a token (or of two, or more): a
// warp has its own token, a CTA those of kChunks neighbouring chunks. A warpgroup's instruction has
// 64 rows: it multiplies all tokens of a chunk with every piece that one of them chose.
//
// Producers merge the chunks' walks and bring a piece into shared memory once, for all warps that
// chose it. Tiles lie in a ring: that of position p in slot p % kSlots. CTAs stay and take item
// after item (kChunks chunks each). Warps go their own ways, also from one item to the next, no
// further apart than the ring is deep:
//
//     merge              load                             barriers   a warp of the 12
//     walks -> steps ->  wait for free slots           <- empty      arrives when done with a tile
//     (block_sparse_     entries for those who visit   -> listed     what it has to do next
//     hopper_tokens_     Q of 3 chunks, K or V         -> full       products
//     producers.h)       arrive for those who do not   -> empty
//
// Nothing can wait in a circle: the oldest entry that is not done is the next one of its warps, and
// its tiles are on their way.
#pragma once

#include "sigma/attention/kernels/block_walk.h"
#include "sigma/attention/kernels/hopper.h"

namespace sigma::kernels::hopper {

constexpr int kChunks = 3, kChunkWarps = 4, kTokenWarps = kChunks * kChunkWarps;
constexpr int kStart = -1, kStop = -2;

// What a warp has to do: a piece, kStart: a new item, or kStop: no more.
struct WarpEntry {
  int first, end;   // keys, end perhaps | kMasked; or the first query, kStart
  int position;     // of K, and then V; or of Q
  uint32_t chosen;  // bit t: by token t of the warp; or the first head
};

// The same for the CTA.
struct Step {
  int first, end;     // keys as above; or b G + g, kStart
  uint32_t visitors;  // bit i: warp i
};

// Row r of a warp's 16: head r / warp_tokens, and of its tokens, from first_token(warp) on, token
// r % warp_tokens.
struct TokenRows {
  int warp_tokens;  // 16 / heads
  int groups;       // items of a (b, g)
  int64_t items;

  // Is a chunk one of kChunkWarps warps?
  static bool fit(const BlockWalk& w) {
    return w.chose && w.heads <= 16 && w.tokens <= kChunkWarps * (16 / w.heads);
  }
  explicit TokenRows(const BlockWalk& w)
      : warp_tokens(16 / w.heads),
        groups(int((w.C + kChunks - 1) / kChunks)),
        items(w.B * w.G * groups) {}
  __device__ int first_token(int warp) const { return warp % kChunkWarps * warp_tokens; }
};

template <int D>
struct TokenShared {
  static constexpr int kSlots = 13, kTile = 64 * D * 2;
  static constexpr int kRing =
      16;  // entries of a warp that are not done: at most kSlots, and kStop
  static constexpr int kQueue = 8;
  static_assert(kSlots < kRing);
  alignas(1024) unsigned char tile[kSlots][kTile];
  WarpEntry ring[kTokenWarps][kRing];  // entry n of a warp at n % kRing
  uint64_t listed[kTokenWarps][kRing], full[kSlots], empty[kSlots];
  // Of a warp's rows: the chunk's row, head * tokens + token, or 64: none; which of its tokens.
  int2 row[kTokenWarps][16];
  int2 item[kTokenWarps];  // what it works at: first query, first head
  // Steps from merge to load, and what they are to each warp: by which of its tokens the piece is
  // chosen; or its first query.
  Step queue[kQueue];
  uint32_t of_warp[kQueue][kTokenWarps];
  uint64_t filled[kQueue], taken[kQueue];

  // By all threads, before all else.
  __device__ void start(const TokenRows& rows, const BlockWalk& w) {
    if (threadIdx.x == 0) {
#pragma unroll 1
      for (int i = 0; i < kSlots; ++i) {
        barrier_init(full + i, 1);
        barrier_init(empty + i, kTokenWarps);
      }
#pragma unroll 1
      for (int i = 0; i < kTokenWarps * kRing; ++i) barrier_init(listed[0] + i, 1);
#pragma unroll 1
      for (int i = 0; i < kQueue; ++i) barrier_init(filled + i, 32), barrier_init(taken + i, 32);
      barrier_init_fence();
    }
    if (threadIdx.x < kTokenWarps * 16) {
      const int warp = threadIdx.x / 16, r = threadIdx.x % 16, head = r / rows.warp_tokens;
      const int token = rows.first_token(warp) + r % rows.warp_tokens;
      const bool real = head < w.heads && token < w.tokens;
      row[warp][r] = make_int2(real ? head * w.tokens + token : 64, r % rows.warp_tokens);
    }
    __syncthreads();
  }
  // By a warp: the tile of position p has come.
  __device__ uint32_t wait(int p) {
    barrier_wait(full + p % kSlots, p / kSlots & 1);
    return shared_address(tile[p % kSlots]);
  }
  // It is done with it. Without the fence the copy engine's next tile may overtake the reads.
  __device__ void done(int p) {
    fence_async();
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(empty + p % kSlots);
  }
  __device__ const WarpEntry& next(int warp, int n) {
    barrier_wait(&listed[warp][n % kRing], n / kRing & 1);
    return ring[warp][n % kRing];
  }
  __device__ void list(int warp, int n, const WarpEntry& entry) {
    ring[warp][n % kRing] = entry;
    barrier_arrive(&listed[warp][n % kRing]);
  }
};

}  // namespace sigma::kernels::hopper
