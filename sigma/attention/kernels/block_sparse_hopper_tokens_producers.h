// The two warps that lead the warps of block_sparse_hopper_tokens.h.
#pragma once

#include <climits>

#include "sigma/attention/kernels/block_sparse_hopper_tokens.h"

namespace sigma::kernels::hopper {

// Merges the chunks' walks into steps. A lane reads an entry, 10 lanes the next entries of a walk;
// of these come as many as are certain to be in order. What comes first among them is free to
// choose: the piece whose visitors had the least to do of late, so that no warp has to do all at
// once.
template <int D>
__device__ inline void merge(TokenShared<D>& shared, const BlockWalk& w, const TokenRows& rows) {
  constexpr int kAhead = 32 / kChunks, kQueue = TokenShared<D>::kQueue;
  constexpr int kNone = kMasked - 1;  // behind all pieces
  constexpr uint32_t group = (1u << kAhead) - 1;
  const int lane = threadIdx.x % 32;
  const int chunk = lane / kAhead;                            // as the reader of an entry
  const int mine = min(lane, kTokenWarps - 1) / kChunkWarps;  // the chunk of warp `lane`
  const uint32_t tokens = (1u << rows.warp_tokens) - 1;
  int n = 0;
  const auto push = [&](int first, int end, bool visit, uint32_t of_warp) {
    const uint32_t visitors = __ballot_sync(~0u, visit);
    barrier_wait(&shared.taken[n % kQueue], (n / kQueue & 1) ^ 1);
    if (lane < kTokenWarps) shared.of_warp[n % kQueue][lane] = of_warp;
    if (lane == 0) shared.queue[n % kQueue] = {first, end, visitors};
    barrier_arrive(&shared.filled[n % kQueue]);
    ++n;
  };
  uint64_t recent = 0;  // visitors of the last four pieces, 16 bits each
  for (int item = blockIdx.x; item < rows.items; item += gridDim.x) {
    // One (b, g)'s chunks run together, so that its K and V stay in the L2 cache; late chunks
    // first, whose walks are the longest if causal.
    const int bg = item / rows.groups, chunk0 = (rows.groups - 1 - item % rows.groups) * kChunks;
    const int live = min(kChunks, int(w.C) - chunk0);
    const bool works = lane < kTokenWarps && mine < live;
    push(bg, kStart, works, works ? w.q_first[chunk0 + mine] : 0);

    const int64_t walk = int64_t(bg) * w.C + chunk0 + chunk, base = walk * w.cap;
    const int count = chunk < live ? w.count[walk] : 0;
    for (int at = lane - chunk * kAhead;;) {
      int entry = kNone;
      uint64_t chose = 0;
      if (at < count) entry = w.piece[base + at], chose = w.chose[base + at];
      int piece = entry & ~kMasked, last = kNone;
#pragma unroll
      for (int i = 0; i < kChunks; ++i)
        last = min(last, __shfl_sync(~0u, piece, (i + 1) * kAhead - 1));
      const bool take = piece <= last && piece != kNone;
      const uint32_t taken = __ballot_sync(~0u, take);
      if (!taken) break;
      at += __popc(taken >> chunk * kAhead & group);
      if (!take) piece = ~lane;
      const uint32_t same = __match_any_sync(~0u, piece);  // who reads the same piece
      const uint32_t masked = __ballot_sync(~0u, entry & kMasked);
      int first = 0, end = 0;
      if (take) {
        first = w.key_first[piece];
        end = w.key_first[piece + 1] | (masked & same ? kMasked : 0);
      }
      // Its visitors: in each chunk those for whose tokens the reader's bits stand.
      uint32_t own = 0, visitors = 0;
#pragma unroll
      for (int i = 0; i < kChunkWarps; ++i)
        if (chose >> rows.first_token(i) & tokens) own |= 1u << (chunk * kChunkWarps + i);
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        const uint32_t reader = same >> i * kAhead & group;
        const uint32_t theirs = __shfl_sync(~0u, own, (i * kAhead + __ffs(reader) - 1) & 31);
        if (reader) visitors |= theirs;
      }
      // The first of its readers stands for it.
      bool candidate = take && __ffs(same) - 1 == lane && visitors;
      for (;;) {
        const int cost = __popcll(visitors * 0x1000100010001ull & recent);
        const int best = __reduce_min_sync(~0u, candidate ? cost * 32 + lane : INT_MAX);
        if (best == INT_MAX) break;
        const int s = best % 32;
        if (lane == s) candidate = false;
        const uint32_t chosen = __shfl_sync(~0u, visitors, s);
        recent = recent << 16 | chosen;
        const uint32_t reader = __shfl_sync(~0u, same, s) >> mine * kAhead & group;
        const uint64_t by = __shfl_sync(~0u, chose, (mine * kAhead + __ffs(reader) - 1) & 31);
        push(__shfl_sync(~0u, first, s), __shfl_sync(~0u, end, s), chosen >> lane & 1,
             uint32_t(by >> rows.first_token(lane)) & tokens);
      }
    }
  }
  push(0, kStop, false, 0);
}

// Waits for free slots, tells the visitors what they have to do, and asks for the tiles. An entry
// is listed when both its slots are free: its tiles cannot be taken for earlier ones that have not
// come.
template <int D>
__device__ inline void load(TokenShared<D>& shared, const BlockWalk& w, const CUtensorMap* q,
                            const CUtensorMap* k, const CUtensorMap* v) {
  constexpr int kQueue = TokenShared<D>::kQueue, kSlots = TokenShared<D>::kSlots;
  const int lane = threadIdx.x % 32;  // lane i lists the entries of warp i
  const int mine = min(lane, kTokenWarps - 1) / kChunkWarps;
  int n = 0, position = 0, bg = 0;
  const auto wait = [&](int p) { barrier_wait(&shared.empty[p % kSlots], (p / kSlots & 1) ^ 1); };
  // By one thread: the tile of position p comes, for some of the warps.
  const auto load = [&](int p, int visitors, const CUtensorMap* map, int rows, int row, int outer) {
    if (visitors < kTokenWarps) barrier_arrive(&shared.empty[p % kSlots], kTokenWarps - visitors);
    barrier_expect(&shared.full[p % kSlots], rows * D * 2);
    tma_load_tile<D>(shared.tile[p % kSlots], map, &shared.full[p % kSlots], row, outer);
  };
  for (int i = 0;; ++i) {
    barrier_wait(&shared.filled[i % kQueue], i / kQueue & 1);
    const Step step = shared.queue[i % kQueue];
    const uint32_t of_warp = lane < kTokenWarps ? shared.of_warp[i % kQueue][lane] : 0;
    barrier_arrive(&shared.taken[i % kQueue]);
    if (step.end == kStop) break;
    const bool visit = step.visitors >> lane & 1;
    const int visitors = __popc(step.visitors);
    if (step.end == kStart) {
      bg = step.first;
      const int live = visitors / kChunkWarps, head = bg * w.heads;
#pragma unroll 1
      for (int j = 0; j < live; ++j) wait(position + j);
      if (visit) shared.list(lane, n++, {int(of_warp), kStart, position + mine, uint32_t(head)});
#pragma unroll 1
      for (int j = 0; j < live; ++j) {
        const int query = __shfl_sync(~0u, of_warp, j * kChunkWarps);
        if (elect()) load(position + j, kChunkWarps, q, w.tokens * w.heads, query, head);
        __syncwarp();
      }
      position += live;
    } else {
      wait(position);
      if (elect()) load(position, visitors, k, kPiece, step.first, bg);
      __syncwarp();
      wait(position + 1);
      if (visit) shared.list(lane, n++, {step.first, step.end, position, of_warp});
      __syncwarp();
      if (elect()) load(position + 1, visitors, v, kPiece, step.first, bg);
      __syncwarp();
      position += 2;
    }
  }
  if (lane < kTokenWarps) shared.list(lane, n, {0, kStop, 0, 0});
}

}  // namespace sigma::kernels::hopper
