// How rows of Q and grad_out come to grad_kv: item after item of 64 rows, from a task's entries. Of
// each chunk only the tokens that chose the piece come, 64 / heads of them an item, so that all 64
// rows work however few tokens of a chunk agree; gathered row by row in copies of 16 bytes.
//
// Row r of an item is head r / slots and token r % slots of it. Missing tokens' rows are zero, so
// they add nothing.
//
// A queue in shared memory holds the next tokens: 32 entries of the column are read at a time,
// their tokens counted and written behind one another.
#pragma once

#include "sigma/attention/kernels/block_sparse_hopper_grad.h"
#include "sigma/attention/kernels/hopper.h"

namespace sigma::kernels::hopper {

// The state that all threads share.
struct RowQueue {
  // The column's first entry, the task's entries from there (taken from the last to the first, see
  // read_ahead), and b H + the group's first head. Here to save registers.
  int64_t begin;
  int32_t first, last, bh;
  int2 place[64];            // of row r: its head times Nq, and its token of the item
  int32_t at[64 + 32 * 64];  // queries, perhaps | kMasked
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

template <int D>
struct Rows {
  RowQueue& queue;
  const BlockSparseGpu& a;
  const BlockWalk& w;
  const float2* stats;
  int slots;  // tokens an item
  // All threads alike: entries read, their heads' first; the queue's head and end; its heads' first;
  // nothing comes any more.
  int from = 0, head = 0, at = 0, queued = 0, item_head = 0;
  bool drained = false;
  // Of each lane one of the next 32 entries, in every warp the same.
  int32_t next = -1;
  uint64_t next_chose = 0;

  // From the last entry to the first: all columns of causal lists end with the last queries, so
  // CTAs that start together read about the same rows, and some of these from the L2 cache.
  __device__ void read_ahead() {
    const int e = queue.last - 1 - from - int(threadIdx.x % 32);
    next = e >= queue.first ? w.col_chunk[queue.begin + e] : -1;
    next_chose = e >= queue.first ? w.col_chose[queue.begin + e] : 0;
  }

  __device__ void start() {
    if (threadIdx.x < 64) {
      const int h = threadIdx.x / slots, token = threadIdx.x % slots;
      queue.place[threadIdx.x] = make_int2(h * int(a.Nq), h < w.heads ? token : 1 << 20);
    }
    drained = queue.first == queue.last;
    read_ahead();
  }

  // Before the next item is fetched, and with a barrier behind: at least an item in the queue, if
  // so many are left. All warps read the entries and count; each writes some entries' tokens.
  __device__ void fill() {
    if (queued - at >= slots || drained) return;
    const int t = threadIdx.x, lane = t % 32, M = int(a.H / a.G);
    int left = queued - at;
    // What is left (less than an item) moves to the front.
    const int kept = t < left ? queue.at[at + t] : 0;
    __syncthreads();  // nobody reads the queue any more
    if (t < left) queue.at[t] = kept;
    for (;;) {
      if (from >= queue.last - queue.first && left == 0 && head + w.heads < M)
        head += w.heads, from = 0, read_ahead();
      while (left < slots && from < queue.last - queue.first) {
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
        const int mine = __popcll(chose);
        int sum = mine;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
          const int before = __shfl_up_sync(~0u, sum, step);
          if (lane >= step) sum += before;
        }
        const int to = left + sum - mine;
#pragma unroll 2
        for (int i = 0; i < 8; ++i) {  // the entry of lane 4i + this warp; two tokens a lane
          const int of = 4 * i + t / 32, base = __shfl_sync(~0u, query, of);
          const int place = __shfl_sync(~0u, to, of);
          const uint32_t low = __shfl_sync(~0u, uint32_t(chose), of);
          const uint32_t high = __shfl_sync(~0u, uint32_t(chose >> 32), of);
          const uint32_t below = (1u << lane) - 1;
          if (low >> lane & 1) queue.at[place + __popc(low & below)] = base + lane;
          if (high >> lane & 1)
            queue.at[place + __popc(low) + __popc(high & below)] = base + 32 + lane;
        }
        left += __shfl_sync(~0u, sum, 31);
      }
      if (left > 0 || head + w.heads >= M) break;
    }
    at = 0, queued = left, item_head = head;
    drained = from >= queue.last - queue.first && head + w.heads >= M;
  }

  // Fetches the queue's next item and returns its tokens, 0 if there is none. All threads; a
  // group of copies.
  __device__ int fetch(RowStage<D>& stage, RowFacts& facts) {
    const int t = threadIdx.x, count = min(slots, queued - at);
    const int64_t heads_row = int64_t(queue.bh + item_head) * a.Nq;
    if (count > 0) {
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
      at += count;
    }
    copy_commit();
    return count;
  }
};

}  // namespace sigma::kernels::hopper
