// From lists to walks: a warp a chunk.
//
//     lists of the chunk's tokens   which blocks            blocks, ascending    walk
//     9 3 . 7 | 3 8 9 .         ->  bits ...1...1.11.   ->  3 7 8 9          ->  their pieces that
//     16 bytes a load               and by which tokens     a prefix sum         some token may see
//
// All of it lies in the warp's own part of shared memory, and warps do not wait for each other.
#include <cuda_runtime.h>

#include <algorithm>

#include "sigma/attention/kernels/block_walk.h"

namespace sigma::kernels {
namespace {

constexpr int kWarp = 32;
constexpr int kMostWarps = 8;           // of a CTA
constexpr int kMemory = 48 * 1024;      // bytes of a CTA
constexpr int kGroup = kWarp * kWarp;   // blocks: a word of bits a lane
constexpr int64_t kRange = 4 * kGroup;  // blocks that a warp holds at once
constexpr int kLoads = 4;               // a lane's loads on their way together

// The fields are written through these; the walk's readers see const pointers.
template <typename T>
__device__ T* writable(const T* p) {
  return const_cast<T*>(p);
}

// A warp's shared memory, in words: a bit a block of the range; for more than one token 2^shift
// bits a block, bit t: token t chose it; 16 bits a block of a group, those chosen.
struct Layout {
  int range;  // blocks, whole groups
  int shift;
  __host__ __device__ int present() const { return range / 32; }
  __host__ __device__ int choosers() const { return shift ? range / 32 << shift : 0; }
  __host__ __device__ int words() const { return present() + choosers() + kGroup / 2; }
};

// Sum over the lower lanes; `total` becomes the sum over all.
__device__ int exclusive_sum(int value, int* total) {
  int sum = value;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const int other = __shfl_up_sync(~0u, sum, step);
    if (static_cast<int>(threadIdx.x) % kWarp >= step) sum += other;
  }
  *total = __shfl_sync(~0u, sum, kWarp - 1);
  return sum - value;
}

template <int n>
struct alignas(4 * n) Entries {
  int32_t block[n];
};

// n: entries a load. 4: lists begin at multiples of 16 bytes.
template <int n>
__global__ void __launch_bounds__(kMostWarps* kWarp, 5)
    walk_kernel(const __grid_constant__ BlockWalk walk, Layout layout) {
  extern __shared__ __align__(16) uint32_t memory[];
  const BlockWalkInput& in = walk.lists;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const unsigned C = walk.C, row = blockIdx.x * (blockDim.x / kWarp) + warp;
  if (row >= walk.B * walk.G * C) return;
  const unsigned chunk = row % C, pair = row / C;
  uint32_t* present = memory + warp * layout.words();
  uint32_t* choosers = present + layout.present();
  uint16_t* chosen = reinterpret_cast<uint16_t*>(choosers + layout.choosers());

  const int tokens = walk.chose ? walk.q_first[chunk + 1] - walk.q_first[chunk] : 1;
  const int length = in.n, entries = tokens * length;
  const int32_t* lists = in.index + (int64_t(pair) * in.R + in.chunk_list[chunk]) * in.n;
  const int lowest_q = in.chunk_ranks ? in.chunk_ranks[2 * chunk] : 0;
  const int highest_q = in.chunk_ranks ? in.chunk_ranks[2 * chunk + 1] : 0;
  const auto seen = [&](int p) {
    if (!in.chunk_ranks) return true;
    const int gap = lowest_q - in.piece_ranks[2 * p + 1];
    return in.piece_ranks[2 * p] <= highest_q && (in.window == 0 || gap < in.window);
  };
  const auto masked = [&](int p) {
    if (in.any_masked || in.piece_masked[p]) return true;
    if (!in.chunk_ranks) return false;
    const int gap = highest_q - in.piece_ranks[2 * p];
    return in.piece_ranks[2 * p + 1] > lowest_q || (in.window > 0 && gap >= in.window);
  };
  const auto mark = [&](unsigned block, int token) {
    atomicOr(present + block / 32, 1u << block % 32);
    if (layout.shift == 0) return;
    const unsigned bit = (block << layout.shift) + token;
    atomicOr(choosers + bit / 32, 1u << bit % 32);
  };

  int64_t at = int64_t(row) * walk.cap;
  int written = 0;
  for (int first = 0; first < in.W; first += layout.range) {
    const unsigned blocks = min(int(in.W) - first, layout.range);
    for (int i = 4 * lane; i < layout.present() + layout.choosers(); i += 4 * kWarp)
      *reinterpret_cast<uint4*>(present + i) = {};
    __syncwarp();
    for (int i = n * lane; i < entries; i += kLoads * kWarp * n) {
      Entries<n> loaded[kLoads] = {};
#pragma unroll
      for (int j = 0; j < kLoads; ++j)
        if (i + j * kWarp * n < entries)
          loaded[j] = *reinterpret_cast<const Entries<n>*>(lists + i + j * kWarp * n);
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        const int entry = i + j * kWarp * n;
        if (entry >= entries) break;
        const int token = layout.shift ? entry / length : 0;
#pragma unroll
        for (int x = 0; x < n; ++x) {
          const unsigned block = unsigned(loaded[j].block[x]) - first;  // negative: huge
          if (block < blocks) mark(block, token);
        }
      }
    }
    __syncwarp();
    for (unsigned group = 0; group < blocks; group += kGroup) {
      uint32_t bits = present[group / 32 + lane];
      int found;
      int to = exclusive_sum(__popc(bits), &found);
      for (; bits; bits &= bits - 1) chosen[to++] = 32 * lane + __ffs(bits) - 1;
      __syncwarp();
      for (int i = 0; i < found; i += kWarp) {
        const bool here = i + lane < found;
        const unsigned block = group + (here ? chosen[i + lane] : 0);
        int p = here ? in.piece_start[first + block] : 0;
        const int end = here ? in.piece_start[first + block + 1] : 0;
        int pieces = 0;
        for (int j = p; j < end; ++j) pieces += seen(j) ? 1 : 0;
        int total;
        int64_t place = at + exclusive_sum(pieces, &total);
        at += total;
        written += total;
        uint64_t by = 1;
        if (layout.shift == 6) {
          by = reinterpret_cast<const uint64_t*>(choosers)[block];
        } else if (layout.shift > 0) {
          const unsigned bit = block << layout.shift;
          by = choosers[bit / 32] >> bit % 32 & ((uint64_t{1} << (1 << layout.shift)) - 1);
        }
        for (; p < end; ++p) {
          if (!seen(p)) continue;
          writable(walk.piece)[place] = p | (masked(p) ? kMasked : 0);
          if (walk.chose) writable(walk.chose)[place] = by;
          ++place;
        }
      }
      __syncwarp();
    }
  }
  if (lane == 0) writable(walk.count)[row] = written;
}

}  // namespace

int block_walk(const BlockWalk& walk, void* stream) {
  const BlockWalkInput& in = walk.lists;
  const int64_t chunks = walk.B * walk.G * walk.C;
  if (chunks == 0) return cudaSuccess;
  Layout layout = {};
  layout.range = std::min((in.W + kGroup - 1) / kGroup * kGroup, kRange);
  while (walk.chose && 1 << layout.shift < walk.tokens) ++layout.shift;
  const int bytes = layout.words() * 4;
  const int warps = std::min(kMostWarps, kMemory / bytes);
  const bool aligned = in.n % 4 == 0 && reinterpret_cast<uintptr_t>(in.index) % 16 == 0;
  const auto kernel = aligned ? walk_kernel<4> : walk_kernel<1>;
  kernel<<<static_cast<unsigned>((chunks + warps - 1) / warps), warps * kWarp, warps * bytes,
           static_cast<cudaStream_t>(stream)>>>(walk, layout);
  return cudaGetLastError();
}

}  // namespace sigma::kernels
