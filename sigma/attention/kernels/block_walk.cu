#include <cuda_runtime.h>

#include <algorithm>

#include "sigma/attention/kernels/block_walk.h"

namespace sigma::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kRange = 4096;  // blocks whose choosers a CTA holds at once

// The fields are written through these; the walk's readers see const pointers.
template <typename T>
__host__ __device__ T* writable(const T* p) {
  return const_cast<T*>(p);
}

// Sum over the lower threads; `total` becomes the sum over all. `sums` has room for the warps.
__device__ int exclusive_sum(int value, int* sums, int* total) {
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  int sum = value;
  for (int step = 1; step < kWarp; step *= 2) {
    const int other = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += other;
  }
  __syncthreads();  // sums may still be read
  if (lane == kWarp - 1) sums[warp] = sum;
  __syncthreads();
  int before = 0;
  *total = 0;
  for (int i = 0; i < static_cast<int>(blockDim.x) / kWarp; ++i) {
    before += i < warp ? sums[i] : 0;
    *total += sums[i];
  }
  return before + sum - value;
}

// A CTA a chunk: which tokens chose each block, then the blocks' pieces in ascending order.
__global__ void walk_kernel(BlockWalkInput in, BlockWalk walk) {
  extern __shared__ unsigned long long chosen_by[];  // [kRange] bit t: token t
  __shared__ int sums[kThreads / kWarp];
  const int64_t chunk = blockIdx.x % walk.C;
  const int64_t pair = blockIdx.x / walk.C;
  const int64_t b = pair / walk.G;
  const int64_t out = (pair * walk.C + chunk) * walk.cap;
  const int tokens = walk.chose ? walk.q_first[chunk + 1] - walk.q_first[chunk] : 1;
  const int32_t* lists = in.index + (pair * in.R + in.chunk_list[chunk]) * in.n;
  int lowest_q = 0;
  int highest_q = 0;
  if (in.chunk_ranks) {
    lowest_q = in.chunk_ranks[2 * chunk];
    highest_q = in.chunk_ranks[2 * chunk + 1];
  }
  const auto seen = [&](int p) {
    if (!in.chunk_ranks) return true;
    const int gap = lowest_q - in.piece_ranks[2 * p + 1];
    return in.piece_ranks[2 * p] <= highest_q && (in.window == 0 || gap < in.window);
  };
  const auto masked = [&](int p) {
    if (in.piece_masked[b * walk.P + p]) return true;
    if (!in.chunk_ranks) return false;
    const int gap = highest_q - in.piece_ranks[2 * p];
    return in.piece_ranks[2 * p + 1] > lowest_q || (in.window > 0 && gap >= in.window);
  };

  int written = 0;
  for (int64_t first = 0; first < in.W; first += kRange) {
    const int blocks = static_cast<int>(in.W - first < kRange ? in.W - first : kRange);
    __syncthreads();
    for (int i = threadIdx.x; i < blocks; i += kThreads) chosen_by[i] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < tokens * in.n; i += kThreads) {
      const int64_t w = lists[i] - first;
      if (lists[i] >= 0 && w >= 0 && w < blocks) atomicOr(chosen_by + w, 1ull << (i / in.n));
    }
    __syncthreads();
    for (int start = 0; start < blocks; start += kThreads) {
      const int i = start + static_cast<int>(threadIdx.x);
      const unsigned long long by = i < blocks ? chosen_by[i] : 0;
      int p = by ? in.piece_start[first + i] : 0;
      const int end = by ? in.piece_start[first + i + 1] : 0;
      int pieces = 0;
      for (int j = p; j < end; ++j) pieces += seen(j) ? 1 : 0;
      int total;
      int64_t at = out + written + exclusive_sum(pieces, sums, &total);
      written += total;
      for (; p < end; ++p) {
        if (!seen(p)) continue;
        writable(walk.piece)[at] = p | (masked(p) ? kMasked : 0);
        if (walk.chose) writable(walk.chose)[at] = by;
        ++at;
      }
    }
  }
  if (threadIdx.x == 0) writable(walk.count)[pair * walk.C + chunk] = written;
}

// Visits of each piece by each band of chunks. Integers: the order of additions is no matter.
__global__ void count_kernel(BlockWalk walk, int64_t bands, int32_t* work) {
  const int64_t row = blockIdx.x;  // (b, g, chunk)
  const int64_t band = row / walk.C * bands + row % walk.C / kBand;
  for (int i = threadIdx.x; i < walk.count[row]; i += kThreads)
    atomicAdd(work + band * walk.P + (walk.piece[row * walk.cap + i] & ~kMasked), 1);
}

// work becomes the place of each band's first visit; a CTA a (b, g).
__global__ void column_kernel(BlockWalk walk, int64_t bands, int32_t* work) {
  __shared__ int sums[kThreads / kWarp];
  const int64_t pair = blockIdx.x;
  int32_t* counts = work + pair * bands * walk.P;
  int32_t* start = writable(walk.col_start) + pair * (walk.P + 1);
  int before = 0;
  for (int64_t first = 0; first < walk.P; first += kThreads) {
    const int64_t p = first + threadIdx.x;
    int visits = 0;
    if (p < walk.P) {
#pragma unroll 8
      for (int64_t band = 0; band < bands; ++band) visits += counts[band * walk.P + p];
    }
    int total;
    int at = before + exclusive_sum(visits, sums, &total);
    before += total;
    if (p >= walk.P) continue;
    start[p] = at;
#pragma unroll 8
    for (int64_t band = 0; band < bands; ++band) {
      const int here = counts[band * walk.P + p];
      counts[band * walk.P + p] = at;
      at += here;
    }
  }
  if (threadIdx.x == 0) start[walk.P] = before;
}

// A CTA a band: its chunks one after the other, so that every column is in ascending order.
__global__ void fill_kernel(BlockWalk walk, int64_t bands, int32_t* work) {
  const int64_t pair = blockIdx.x / bands;
  const int64_t band = blockIdx.x % bands;
  int32_t* next = work + (pair * bands + band) * walk.P;
  const int64_t columns = pair * walk.C * walk.cap;
  const int64_t last = (band + 1) * kBand < walk.C ? (band + 1) * kBand : walk.C;
  for (int64_t chunk = band * kBand; chunk < last; ++chunk) {
    const int64_t row = pair * walk.C + chunk;
    for (int i = threadIdx.x; i < walk.count[row]; i += kThreads) {
      const int32_t entry = walk.piece[row * walk.cap + i];
      const int64_t at = columns + next[entry & ~kMasked]++;
      writable(walk.col_chunk)[at] = static_cast<int32_t>(chunk) | (entry & kMasked);
      if (walk.chose) writable(walk.col_chose)[at] = walk.chose[row * walk.cap + i];
    }
    __syncthreads();
  }
}

}  // namespace

int block_walk(const BlockWalkInput& in, const BlockWalk& walk, void* stream) {
  const int64_t chunks = walk.B * walk.G * walk.C;
  if (chunks == 0) return cudaSuccess;
  const size_t bytes = std::min<int64_t>(in.W, kRange) * sizeof(unsigned long long);
  walk_kernel<<<static_cast<unsigned>(chunks), kThreads, bytes,
                static_cast<cudaStream_t>(stream)>>>(in, walk);
  return cudaGetLastError();
}

int block_walk_columns(const BlockWalk& walk, int32_t* work, void* stream_pointer) {
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  const int64_t pairs = walk.B * walk.G;
  const int64_t bands = (walk.C + kBand - 1) / kBand;
  if (pairs == 0) return cudaSuccess;
  if (walk.C == 0 || walk.P == 0)
    return cudaMemsetAsync(writable(walk.col_start), 0, pairs * (walk.P + 1) * sizeof(int32_t),
                           stream);
  const cudaError_t cleared =
      cudaMemsetAsync(work, 0, pairs * bands * walk.P * sizeof(int32_t), stream);
  if (cleared != cudaSuccess) return cleared;
  count_kernel<<<static_cast<unsigned>(pairs * walk.C), kThreads, 0, stream>>>(walk, bands, work);
  column_kernel<<<static_cast<unsigned>(pairs), kThreads, 0, stream>>>(walk, bands, work);
  fill_kernel<<<static_cast<unsigned>(pairs * bands), kThreads, 0, stream>>>(walk, bands, work);
  return cudaGetLastError();
}

}  // namespace sigma::kernels
