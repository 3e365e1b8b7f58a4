// Walks turned round: for each piece the chunks that visit it, ascending. A stable counting sort,
// whose result depends on no order in time:
//
//     count_kernel   a CTA a band of chunks: one word of bits a piece, which of them visit it;
//                    its population is the band's count
//     place_kernel   prefix sums over the bands of each column
//     start_kernel   prefix sums over the columns
//     fill_kernel    a visit goes to start of column + place of band + visitors before it in the
//                    band's word
#include <cuda_runtime.h>

#include "sigma/attention/kernels/block_walk.h"

namespace sigma::kernels {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr int kColumns = 2048;  // columns of a CTA
constexpr int kBand = 32;       // chunks of a CTA, a bit each

using Word = unsigned;
static_assert(kBand == 8 * sizeof(Word));

template <typename T>
__host__ __device__ T* writable(const T* p) {
  return const_cast<T*>(p);
}

// The work of a CTA: a band of a (b, g)'s chunks and up to kColumns columns.
struct Part {
  int64_t band, row;  // of all bands, of all walks: the first
  int pair, chunk, chunks, column, columns;
  __device__ Part(const BlockWalk& walk, int bands) {
    band = blockIdx.x;
    pair = blockIdx.x / bands;
    chunk = blockIdx.x % bands * kBand;
    chunks = min(kBand, int(walk.C) - chunk);
    row = pair * walk.C + chunk;
    column = blockIdx.y * kColumns;
    columns = min(kColumns, int(walk.P) - column);
  }
  // visit(c, place of the entry, entry, its column) for every entry of the band; a warp a chunk.
  template <class F>
  __device__ void each(const BlockWalk& walk, F visit) const {
    for (int c = threadIdx.x / kWarp; c < chunks; c += kWarps) {
      const int count = walk.count[row + c];
      const int64_t walk_at = (row + c) * walk.cap;
#pragma unroll 4
      for (int i = threadIdx.x % kWarp; i < count; i += kWarp) {
        const int32_t entry = walk.piece[walk_at + i];
        const unsigned p = unsigned(entry & ~kMasked) - column;
        if (p < columns) visit(c, walk_at + i, entry, p);
      }
    }
  }
};

__global__ void __launch_bounds__(kThreads)
    count_kernel(const __grid_constant__ BlockWalk walk, int bands, int32_t* counts) {
  __shared__ Word visitors[kColumns];
  const Part part(walk, bands);
  for (int p = threadIdx.x; p < part.columns; p += kThreads) visitors[p] = 0;
  __syncthreads();
  part.each(walk, [&](int c, int64_t, int32_t, int p) { atomicOr(visitors + p, Word{1} << c); });
  __syncthreads();
  for (int p = threadIdx.x; p < part.columns; p += kThreads)
    counts[part.band * walk.P + part.column + p] = __popc(visitors[p]);
}

// Counts become sums over the lower bands; start[p + 1] the column's total. A CTA has 32 columns,
// a warp a share of the bands.
__global__ void __launch_bounds__(kWarp* kWarp)
    place_kernel(const __grid_constant__ BlockWalk walk, int bands, int32_t* counts) {
  __shared__ int sums[kWarp][kWarp];
  const int64_t pair = blockIdx.x, p = blockIdx.y * kWarp + threadIdx.x;
  const int share = (bands + kWarp - 1) / kWarp, first = threadIdx.y * share;
  const int last = min(first + share, bands);
  counts += pair * bands * walk.P + p;
  int sum = 0;
  if (p < walk.P) {
#pragma unroll 8
    for (int band = first; band < last; ++band) sum += counts[band * walk.P];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (p >= walk.P) return;
  int before = 0;
  for (int i = 0; i < threadIdx.y; ++i) before += sums[i][threadIdx.x];
#pragma unroll 8
  for (int band = first; band < last; ++band) {
    const int here = counts[band * walk.P];
    counts[band * walk.P] = before;
    before += here;
  }
  if (threadIdx.y == kWarp - 1) writable(walk.col_start)[pair * (walk.P + 1) + p + 1] = before;
}

// Totals of columns become their ends. A CTA a (b, g).
__global__ void __launch_bounds__(kWarp* kWarp)
    start_kernel(const __grid_constant__ BlockWalk walk) {
  __shared__ int sums[kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int32_t* start = writable(walk.col_start) + blockIdx.x * (walk.P + 1);
  int before = 0;
  for (int64_t first = 0; first < walk.P; first += kWarp * kWarp) {
    const int64_t p = first + threadIdx.x;
    int sum = p < walk.P ? start[p + 1] : 0;
    for (int step = 1; step < kWarp; step *= 2) {
      const int other = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += other;
    }
    __syncthreads();  // sums may still be read
    if (lane == kWarp - 1) sums[warp] = sum;
    __syncthreads();
    int lower = 0, total = 0;
    for (int i = 0; i < kWarp; ++i) {
      lower += i < warp ? sums[i] : 0;
      total += sums[i];
    }
    if (p < walk.P) start[p + 1] = before + lower + sum;
    before += total;
  }
  if (threadIdx.x == 0) start[0] = 0;
}

__global__ void __launch_bounds__(kThreads)
    fill_kernel(const __grid_constant__ BlockWalk walk, int bands, const int32_t* counts) {
  __shared__ Word visitors[kColumns];
  __shared__ int places[kColumns];
  const Part part(walk, bands);
  const int32_t* start = walk.col_start + part.pair * (walk.P + 1) + part.column;
  for (int p = threadIdx.x; p < part.columns; p += kThreads) {
    visitors[p] = 0;
    places[p] = start[p] + counts[part.band * walk.P + part.column + p];
  }
  __syncthreads();
  part.each(walk, [&](int c, int64_t, int32_t, int p) { atomicOr(visitors + p, Word{1} << c); });
  __syncthreads();
  const int64_t columns = part.pair * walk.C * walk.cap;
  part.each(walk, [&](int c, int64_t from, int32_t entry, int p) {
    const int before = __popc(visitors[p] & ((Word{1} << c) - 1));
    const int64_t to = columns + places[p] + before;
    writable(walk.col_chunk)[to] = (part.chunk + c) | (entry & kMasked);
    if (walk.chose) writable(walk.col_chose)[to] = walk.chose[from];
  });
}

int64_t bands_of(const BlockWalk& walk) { return (walk.C + kBand - 1) / kBand; }

}  // namespace

int64_t block_walk_columns_work(const BlockWalk& walk) {
  return walk.B * walk.G * bands_of(walk) * walk.P;
}

int block_walk_columns(const BlockWalk& walk, int32_t* work, void* stream_pointer) {
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  const unsigned pairs = walk.B * walk.G;
  const int bands = bands_of(walk);
  if (pairs == 0) return cudaSuccess;
  if (walk.C == 0 || walk.P == 0)
    return cudaMemsetAsync(writable(walk.col_start), 0, pairs * (walk.P + 1) * sizeof(int32_t),
                           stream);
  const dim3 parts(pairs * bands, (walk.P + kColumns - 1) / kColumns);
  count_kernel<<<parts, kThreads, 0, stream>>>(walk, bands, work);
  const dim3 columns(pairs, (walk.P + kWarp - 1) / kWarp);
  place_kernel<<<columns, dim3(kWarp, kWarp), 0, stream>>>(walk, bands, work);
  start_kernel<<<pairs, kWarp * kWarp, 0, stream>>>(walk);
  fill_kernel<<<parts, kThreads, 0, stream>>>(walk, bands, work);
  return cudaGetLastError();
}

}  // namespace sigma::kernels
