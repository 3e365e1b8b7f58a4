// How rows of Q and grad_out come to grad_kv: item after item of 64 rows, from a task's entries.
//
//   tile rows   (no `chose`) an item is a chunk, fetched in boxes by the copy engine
//   token rows  of each chunk only the tokens that chose the piece, 64 / heads of them an item, so
//               that all 64 rows work however few tokens of a chunk agree; gathered row by row in
//               copies of 16 bytes
//
// Row r of an item is head r / slots and token r % slots of it. Missing tokens' rows are zero in
// the second case, and have lse +inf in the first, so they add nothing.
//
// A queue in shared memory holds the next tokens (chunks): the first warp reads 32 entries of the
// column at a time, counts their tokens and writes them behind one another.
#pragma once

#include "sigma/attention/kernels/block_sparse_hopper_grad.h"
#include "sigma/attention/kernels/hopper.h"

namespace sigma::kernels::hopper {

// The state that all threads share.
template <bool gather>
struct RowQueue {
  int2 place[64];  // of row r: its head times Nq, and its token of the item
  // Queries, perhaps | kMasked; a chunk: its first, and after it how many.
  int32_t at[gather ? 64 + 32 * 64 : 2 * (1 + 32)];
  int32_t queued, drained, head;
};

// 16 bytes, or 8, from global to shared memory; zeros if not `real`.
template <int bytes>
__device__ inline void copy(uint32_t to, const void* from, bool real) {
  const int size = real ? bytes : 0;
  if constexpr (bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(size)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(size)
                 : "memory");
}
__device__ inline void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int left>
__device__ inline void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
}

// A stage of the ring: an item.
template <int D>
struct RowStage {
  unsigned char tile[2][64 * D * 2];  // Q, grad_out
};
struct RowFacts {
  float2 stats[64];   // of the rows: lse log2 e, delta
  int32_t query[64];  // of the tokens, perhaps | kMasked; -1: none
};

template <int D, bool gather>
struct Rows {
  RowQueue<gather>& queue;
  const BlockSparseGpu& a;
  const BlockWalk& w;
  const float2* stats;
  int64_t begin;    // the column's first entry
  int first, last;  // the task's entries; taken from the last to the first (see below)
  int bh;           // b H + the group's first head
  int slots;        // tokens an item, 1 chunk
  // The first warp alone: the next entry, and of each lane that of the 32 from there.
  int from = 0, head = 0;  // entries read, the heads' first
  int32_t next = -1;
  uint64_t next_chose = 0;
  // All threads alike: the queue's head and end; the heads' first; nothing comes any more.
  int at = 0, queued = 0, item_head = 0;
  bool drained = false;

  // From the last entry to the first: all columns of causal lists end with the last queries, so
  // CTAs that run together read about the same rows, and these come from the L2 cache.
  __device__ void read_ahead() {
    const int e = last - 1 - from - threadIdx.x;
    next = e >= first ? w.col_chunk[begin + e] : -1;
    next_chose = gather && e >= first ? (w.col_chose ? w.col_chose[begin + e] : ~0ull) : 0;
  }

  __device__ void start() {
    if (threadIdx.x < 64) {
      const int h = threadIdx.x / (gather ? slots : w.tokens);
      const int token = threadIdx.x % (gather ? slots : w.tokens);
      queue.place[threadIdx.x] = make_int2(h * int(a.Nq), h < w.heads ? token : 1 << 20);
    }
    drained = first == last;
    if (threadIdx.x < 32) read_ahead();
  }

  // Is the queue too short for an item? Then the first warp fills it (`fill`), and after a barrier
  // all threads take note (`filled`).
  __device__ bool low() const { return queued - at < (gather ? slots : 1) && !drained; }

  __device__ void fill() {
    constexpr int kWords = gather ? 1 : 2;  // of the queue, for a token (chunk)
    const int lane = threadIdx.x, M = int(a.H / a.G);
    int left = queued - at;
    if (at > 0 && left > 0) {  // what is left (less than an item) moves to the front
      const int x = lane < left ? queue.at[at + lane] : 0;
      const int y = lane + 32 < left ? queue.at[at + 32 + lane] : 0;
      __syncwarp();
      if (lane < left) queue.at[lane] = x;
      if (lane + 32 < left) queue.at[lane + 32] = y;
    }
    for (;;) {
      if (from >= last - first && left == 0 && head + w.heads < M)
        head += w.heads, from = 0, read_ahead();
      while (left < slots && from < last - first) {
        const int32_t entry = next;
        uint64_t chose = next_chose;
        from += 32;
        read_ahead();
        int query = 0, tokens = 0;
        if (entry >= 0) {
          query = w.q_first[entry & ~kMasked];
          tokens = w.q_first[(entry & ~kMasked) + 1] - query;
          query |= entry & kMasked;
        }
        if (tokens < 64) chose &= (1ull << tokens) - 1;
        const int mine = gather ? __popcll(chose) : entry >= 0;
        int sum = mine;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
          const int before = __shfl_up_sync(~0u, sum, step);
          if (lane >= step) sum += before;
        }
        int to = left + sum - mine;
        if constexpr (gather) {
          for (; chose; chose &= chose - 1) queue.at[to++] = query + __ffsll(chose) - 1;
        } else if (entry >= 0) {
          queue.at[to * kWords] = query, queue.at[to * kWords + 1] = tokens;
        }
        left += __shfl_sync(~0u, sum, 31);
      }
      if (left > 0 || head + w.heads >= M) break;
    }
    if (lane == 0) {
      queue.queued = left;
      queue.drained = from >= last - first && head + w.heads >= M;
      queue.head = head;
    }
  }

  __device__ void filled() {
    at = 0, queued = queue.queued, drained = queue.drained, item_head = queue.head;
  }

  // Fetches the queue's next item, returns its tokens (chunks); 0: there is none. A group of copies.
  __device__ int fetch(RowStage<D>& stage, RowFacts& facts, uint64_t* barrier, const CUtensorMap* q,
                       const CUtensorMap* grad_out) {
    const int t = threadIdx.x, count = min(slots, queued - at);
    const int64_t heads_row = int64_t(bh + item_head) * a.Nq;
    if (count > 0) {
      if constexpr (gather) {
        if (t < 64) {
          const int2 place = queue.place[t];
          const bool real = place.y < count;
          const int query = real ? queue.at[at + place.y] & ~kMasked : 0;
          copy<8>(shared_address(&facts.stats[t]), stats + heads_row + (real ? place.x + query : 0),
                  real);
          facts.query[t] = t < count ? queue.at[at + t] : -1;
        }
        constexpr int kUnits = D / 8;  // of 16 bytes, of a row
        const int unit = t % kUnits, row0 = t / kUnits;
        const uint32_t to = shared_address(stage.tile[0]) + unit / 8 * 8192 + row0 * 128 +
                            ((unit % 8 ^ row0 % 8) << 4);
        const int64_t base = heads_row * D + unit * 8;
#pragma unroll
        for (int r = 0; r < 64; r += 128 / kUnits) {
          const int2 place = queue.place[row0 + r];
          const bool real = place.y < count;
          const int query = real ? queue.at[at + place.y] & ~kMasked : 0;
          const int64_t bytes = (base + (real ? int64_t(place.x + query) * D : 0)) * 2;
          copy<16>(to + r * 128, static_cast<const char*>(a.q) + bytes, real);
          copy<16>(to + 128 * D + r * 128, static_cast<const char*>(a.grad_out) + bytes, real);
        }
      } else {
        const int query = queue.at[2 * at] & ~kMasked, tokens = queue.at[2 * at + 1];
        if (t == 0) {
          barrier_expect(barrier, 2 * 64 * D * 2);
          tma_load_tile<D>(stage.tile[0], q, barrier, query, bh + item_head);
          tma_load_tile<D>(stage.tile[1], grad_out, barrier, query, bh + item_head);
        }
        if (t < 64) {
          const int2 place = queue.place[t];
          const bool real = place.y < tokens;
          if (real)
            copy<8>(shared_address(&facts.stats[t]), stats + heads_row + place.x + query + place.y,
                    true);
          else facts.stats[t] = make_float2(INFINITY, 0);
          facts.query[t] = t < tokens ? queue.at[2 * at] + t : -1;
        }
      }
      at += count;
    }
    copy_commit();
    return count;
  }
};

}  // namespace sigma::kernels::hopper
