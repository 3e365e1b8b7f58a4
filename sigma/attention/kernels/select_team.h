// What the threads that choose a row's blocks share: a warp (token rows) or a thread block (tiles).
// Device code.
#pragma once

#include <cstdint>

#include "sigma/attention/kernels/select_blocks.h"

namespace sigma::kernels {

constexpr unsigned kAll = 0xffffffffu;

/// Shared memory of a team.
struct TeamRoom {
  uint32_t* bins;    // [256]
  uint32_t* taken;   // [ceil(W/32)] a bit a block: in the list
  uint32_t* forced;  // [ceil(W/32)]
  // dart, max_min:
  int32_t* pool;    // [pool] blocks, ascending; those that may not be picked (any more) as ~block
  uint32_t* order;  // [pool] dart: what goes first, as key_of, or 0: none. max_min: score, a float,
                    // or -inf: taken
  float* apart;     // [pool] max_min: distance to the nearest chosen block
  double* score;    // [pool] max_min: alpha log p. dart: int32 pivots[2][n]
};

/// The pool of a row with `count` candidates.
__host__ __device__ inline int64_t pool_size(const SelectBlocksGpu& a, int64_t count) {
  const int64_t asked = a.pool_factor * a.n;
  return asked > 0 && asked < count ? asked : count;
}

__host__ __device__ inline int64_t mask_words(int64_t W) { return (W + 31) / 32; }

/// Bytes of a TeamRoom, a multiple of 16.
__host__ __device__ inline int64_t team_bytes(const SelectBlocksGpu& a) {
  const int64_t pool = a.strategy == SelectStrategy::kTopN ? 0 : pool_size(a, a.W);
  return (1024 + 2 * mask_words(a.W) * 4 + pool * 20 + 15) / 16 * 16;
}

#ifdef __CUDACC__

__device__ inline TeamRoom team_room(const SelectBlocksGpu& a, unsigned char* memory) {
  const int64_t pool = a.strategy == SelectStrategy::kTopN ? 0 : pool_size(a, a.W);
  const int64_t words = mask_words(a.W);
  TeamRoom room;
  room.bins = reinterpret_cast<uint32_t*>(memory);  // first: aligned to 16
  room.score = reinterpret_cast<double*>(room.bins + 256);
  room.apart = reinterpret_cast<float*>(room.score + pool);
  room.pool = reinterpret_cast<int32_t*>(room.apart + pool);
  room.order = reinterpret_cast<uint32_t*>(room.pool + pool);
  room.taken = room.order + pool;
  room.forced = room.taken + words;
  return room;
}

// Scores as integers in the order of preference: NaN is 0, the last; -0 equals 0.
__device__ inline uint32_t key_of(float score) {
  if (isnan(score)) return 0;
  const uint32_t bits = __float_as_uint(score + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline float score_of(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);  // 0: a NaN
}

__device__ inline bool bit(const uint32_t* mask, int j) { return mask[j >> 5] >> (j & 31) & 1; }

// A block, in the order: higher value, higher key, lower block.
struct Best {
  double value = 0;
  uint32_t key = 0;
  int block = -1;  // none
  __device__ bool before(const Best& other) const {
    if (block < 0 || other.block < 0) return block >= 0;
    if (value != other.value) return value > other.value;
    return key != other.key ? key > other.key : block < other.block;
  }
};

template <int kThreads>
struct Team {
  static constexpr int kSize = kThreads;
  static constexpr int kWarps = kThreads / 32;
  int rank = static_cast<int>(threadIdx.x) % kThreads;
  int lane = static_cast<int>(threadIdx.x) % 32;
  int warp = static_cast<int>(threadIdx.x) % kThreads / 32;

  __device__ void sync() const {
    if constexpr (kWarps == 1) __syncwarp();
    else __syncthreads();
  }

  /// The best of all threads; all get it. `room`: at least 16 kWarps bytes that nobody reads.
  __device__ Best best(Best mine, void* room) const {
    for (int step = 16; step > 0; step /= 2) {
      Best other;
      other.value = __shfl_xor_sync(kAll, mine.value, step);
      other.key = __shfl_xor_sync(kAll, mine.key, step);
      other.block = __shfl_xor_sync(kAll, mine.block, step);
      if (other.before(mine)) mine = other;
    }
    if constexpr (kWarps > 1) {
      Best* all = static_cast<Best*>(room);
      if (lane == 0) all[warp] = mine;
      __syncthreads();
      for (int i = 0; i < kWarps; ++i) {
        if (all[i].before(mine)) mine = all[i];
      }
      __syncthreads();  // before it is written again
    }
    return mine;
  }

  /// The highest of all threads. `room`: kWarps words; a sync must come before they are written
  /// again.
  __device__ uint32_t max(uint32_t mine, uint32_t* room) const {
    mine = __reduce_max_sync(kAll, mine);
    if constexpr (kWarps > 1) {
      if (lane == 0) room[warp] = mine;
      __syncthreads();
      for (int i = 0; i < kWarps; ++i) mine = ::max(mine, room[i]);
    }
    return mine;
  }

  /// The sum over all threads. `room`: kWarps words that nobody reads.
  __device__ int sum(int mine, uint32_t* room) const {
    mine = __reduce_add_sync(kAll, mine);
    if constexpr (kWarps > 1) {
      if (lane == 0) room[warp] = static_cast<uint32_t>(mine);
      __syncthreads();
      mine = 0;
      for (int i = 0; i < kWarps; ++i) mine += static_cast<int>(room[i]);
      __syncthreads();  // before it is written again
    }
    return mine;
  }

  /// Bits of a mask; every warp counts them all.
  __device__ int count(const uint32_t* mask, int words) const {
    int sum = 0;
    for (int i = lane; i < words; i += 32) sum += __popc(mask[i]);
    return static_cast<int>(__reduce_add_sync(kAll, static_cast<unsigned>(sum)));
  }
};

// The best k of a row: those of key > `key`, and of the equal ones the first `ties`, or all.
struct Cut {
  uint32_t key = 0;
  int ties = -1;  // -1: all of them
};

/// Calls f(j, key[j]) for all j < count; eight keys are on their way at once.
template <class T, class F>
__device__ void for_keys(const T& team, const uint32_t* key, int count, F f) {
  for (int j0 = team.rank; j0 < count; j0 += 8 * T::kSize) {
    uint32_t x[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = j0 + i * T::kSize < count ? key[j0 + i * T::kSize] : 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (j0 + i * T::kSize < count) f(j0 + i * T::kSize, x[i]);
    }
  }
}

/// The k-th highest of `count` keys, 0 < k <= count: four digits of 8 bits, the highest first; a
/// histogram says in which bin it is.
template <class T>
__device__ Cut kth(const T& team, const uint32_t* key, int count, int k, uint32_t* bins) {
  uint32_t found = 0;  // the digits so far
  uint32_t known = 0;  // which bits they are
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = team.rank; i < 256; i += T::kSize) bins[i] = 0;
    team.sync();
    for_keys(team, key, count, [&](int, uint32_t x) {
      if ((x & known) == found) atomicAdd(&bins[x >> shift & 255], 1u);
    });
    team.sync();
    // Every warp looks on its own. Lane l: bins 255 - 8l down to 248 - 8l.
    int mine[8];
    int sum = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += mine[i] = static_cast<int>(bins[255 - 8 * team.lane - i]);
    int above = sum;  // in this lane's bins and higher ones
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(kAll, above, step);
      if (team.lane >= step) above += other;
    }
    const int lane = __ffs(__ballot_sync(kAll, above >= k)) - 1;
    above -= sum;
    int digit = 0, size = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (size == 0 && above + mine[i] >= k) {
        digit = 255 - 8 * team.lane - i;
        size = mine[i];
      } else if (size == 0) {
        above += mine[i];
      }
    }
    digit = __shfl_sync(kAll, digit, lane);
    size = __shfl_sync(kAll, size, lane);
    k -= __shfl_sync(kAll, above, lane);
    found |= static_cast<uint32_t>(digit) << shift;
    known |= 255u << shift;
    team.sync();                        // before the bins are cleared
    if (size == k) return {found, -1};  // the whole bin
  }
  return {found, k};
}

/// Whether the cut takes each of the 32 keys of a word; `seen`: ties before it, counted on.
__device__ inline uint32_t within(const Cut& cut, uint32_t key, bool there, int lane, int& seen) {
  if (cut.ties < 0) return __ballot_sync(kAll, there && key >= cut.key);
  const uint32_t equal = __ballot_sync(kAll, there && key == cut.key);
  const int rank = seen + __popc(equal & ((1u << lane) - 1));
  seen += __popc(equal);
  return __ballot_sync(kAll, there && (key > cut.key || (key == cut.key && rank < cut.ties)));
}

#endif  // __CUDACC__

}  // namespace sigma::kernels
