// Pairs of a token and a piece that it listed, sorted by piece: a counting sort. The order of a
// piece's pairs changes from run to run, and no result with it: a pair is a row of its own.
#include <algorithm>

#include "sigma/attention/kernels/block_sparse_hopper_pairs.h"

namespace sigma::kernels::hopper {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr int kBand = 64 * kChunksACta;  // bands are multiples: whole CTAs of the other forward
// A strip goes by pieces where fewer than this many of 64 rows chose what their chunk visits.
constexpr int kAgree = 11;
constexpr int64_t kStripBytes = 144 << 20;  // of parts
constexpr int kUnitsAtOnce = 2;  // the last CTAs of one run beside the first of the other
constexpr int kItemRows = 256;

// Sum over the lower threads of the CTA; `total` becomes the sum over all.
__device__ inline int exclusive_sum(int value, int (&sums)[kWarps], int* total) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int sum = value;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const int other = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += other;
  }
  __syncthreads();  // sums may still be read
  if (lane == kWarp - 1) sums[warp] = sum;
  __syncthreads();
  int before = 0;
  *total = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    before += i < warp ? sums[i] : 0;
    *total += sums[i];
  }
  return before + sum - value;
}

// visit(piece, number of the pair) for all pairs of the CTA's band.
template <class F>
__device__ inline void each_pair(const BlockWalk& w, const PairWork& work, F visit) {
  const BlockWalkInput& in = w.lists;
  const int first_token = blockIdx.x % work.bands * work.band;
  const int entries = min(work.band, int(in.R) - first_token) * int(in.n);
  const int32_t* lists = in.index + (blockIdx.x / work.bands * in.R + first_token) * in.n;
  const int before = first_token % work.strip * work.most;  // of the strip's pairs
  constexpr int kLoads = 4;                                 // on their way together
  for (int start = threadIdx.x; start < entries; start += kLoads * kThreads) {
    int block[kLoads], piece[kLoads], end[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      block[j] = start + j * kThreads < entries ? lists[start + j * kThreads] : -1;
      piece[j] = end[j] = 0;
    }
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      if (unsigned(block[j]) >= in.W) continue;
      piece[j] = in.piece_start[block[j]], end[j] = in.piece_start[block[j] + 1];
    }
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      int pair = before + (start + j * kThreads) * in.pieces_a_block;
      for (int p = piece[j]; p < end[j]; ++p) visit(p, pair++);
    }
  }
}

// Pairs of each piece in a band.
__global__ void __launch_bounds__(kThreads)
    count_kernel(const __grid_constant__ BlockWalk w, const __grid_constant__ PairWork work) {
  extern __shared__ int counts[];
  for (int p = threadIdx.x; p < w.P; p += kThreads) counts[p] = 0;
  __syncthreads();
  each_pair(w, work, [&](int p, int) { atomicAdd(counts + p, 1); });
  __syncthreads();
  for (int p = threadIdx.x; p < w.P; p += kThreads)
    work.band_count[blockIdx.x * w.P + p] = counts[p];
}

// Where each band's pairs go, and the items. A CTA a unit.
__global__ void __launch_bounds__(kThreads)
    place_kernel(const __grid_constant__ BlockWalk w, const __grid_constant__ PairWork work) {
  __shared__ int sums[kWarps];
  __shared__ int items, visits;
  const int64_t unit = blockIdx.x, bg = unit / work.strips;
  const int first_token = unit % work.strips * work.strip, first_band = first_token / work.band;
  const int bands = min(work.strip / work.band, work.bands - first_band);
  const int64_t at_band = (bg * work.bands + first_band) * w.P;
  if (threadIdx.x == 0) items = visits = 0;
  __syncthreads();
  const int first_chunk = first_token / w.tokens;
  const int last_chunk = min(first_chunk + work.strip / w.tokens, int(w.C));
  int mine = 0;
  for (int c = first_chunk + threadIdx.x; c < last_chunk; c += kThreads)
    mine += w.count[bg * w.C + c];
  if (mine > 0) atomicAdd(&visits, mine);
  int before = 0;
  for (int start = 0; start < w.P; start += kThreads) {
    const int p = start + threadIdx.x;
    const int32_t* counts = work.band_count + at_band + p;
    int pairs = 0, total;
    if (p < w.P) {
#pragma unroll 8
      for (int band = 0; band < bands; ++band) pairs += counts[band * w.P];
    }
    int at = before + exclusive_sum(pairs, sums, &total);
    before += total;
    if (p >= w.P) continue;
    int item = atomicAdd(&items, (pairs + work.pairs_an_item - 1) / work.pairs_an_item);
    for (int i = 0; i < pairs; i += work.pairs_an_item)
      work.item[unit * work.items + item++] =
          make_int4(p, at + i, at + min(pairs, i + work.pairs_an_item), 0);
#pragma unroll 8
    for (int band = 0; band < bands; ++band) {
      work.place[at_band + p + band * w.P] = at;
      at += counts[band * w.P];
    }
  }
  __syncthreads();
  if (threadIdx.x == 0)
    work.item_count[unit] = int64_t(before) * w.heads < int64_t(kAgree) * visits ? items : 0;
}

// A band's pairs come in order in shared memory first: then neighbours go to neighbours.
__global__ void __launch_bounds__(kThreads)
    fill_kernel(const __grid_constant__ BlockWalk w, const __grid_constant__ PairWork work) {
  extern __shared__ int next[];  // [P] the piece's next pair, of the band
  int* shift = next + w.P;       // [P] from its number in the band to that in the unit
  int* pair = shift + w.P;       // [band * most]
  uint16_t* piece = reinterpret_cast<uint16_t*>(pair + work.band * work.most);
  __shared__ int sums[kWarps];
  const int64_t unit =
      blockIdx.x / work.bands * work.strips + blockIdx.x % work.bands * work.band / work.strip;
  if (work.item_count[unit] == 0) return;
  int before = 0;
  for (int start = 0; start < w.P; start += kThreads) {
    const int p = start + threadIdx.x;
    const int64_t at = blockIdx.x * w.P + p;
    int total;
    const int local = before + exclusive_sum(p < w.P ? work.band_count[at] : 0, sums, &total);
    before += total;
    if (p < w.P) next[p] = local, shift[p] = work.place[at] - local;
  }
  __syncthreads();
  each_pair(w, work, [&](int p, int number) {
    const int at = atomicAdd(next + p, 1);
    pair[at] = number;
    piece[at] = uint16_t(p);
  });
  __syncthreads();
  int32_t* to = work.pair + unit * work.pairs;
  for (int i = threadIdx.x; i < before; i += kThreads) to[shift[piece[i]] + i] = pair[i];
}

int fill_bytes(const BlockWalk& w, const PairWork& work) {
  return int(w.P) * 8 + work.band * work.most * 6;
}

}  // namespace

PairWork pair_work(const BlockSparseGpu& a, const BlockWalk& w, void* memory, int64_t* bytes) {
  PairWork work;
  work.most = int(w.lists.n) * w.lists.pieces_a_block;
  work.band = kBand * std::clamp(32 / std::max(work.most, 1), 1, 4);
  work.bands = int((a.Nq + work.band - 1) / work.band);
  const int64_t band_bytes = int64_t(work.band) * work.most * w.heads * a.D * 2;
  const int64_t bands = std::clamp<int64_t>(kStripBytes / band_bytes, 1, work.bands);
  work.strips = int((work.bands + bands - 1) / bands);  // of about the same size
  work.strip = (work.bands + work.strips - 1) / work.strips * work.band;
  work.strips = int((a.Nq + work.strip - 1) / work.strip);
  work.units = int(a.B * a.G) * work.strips;
  work.at_once = std::min(work.units, kUnitsAtOnce);
  work.pairs_an_item = kItemRows / w.heads;
  work.pairs = int64_t(work.strip) * work.most;
  work.rows = work.pairs * w.heads + 1;
  work.items = work.pairs / work.pairs_an_item + w.P;
  char* at = static_cast<char*>(memory);
  const auto take = [&](auto*& to, int64_t size) {
    to = reinterpret_cast<std::remove_reference_t<decltype(to)>>(at);
    at += (size + 255) / 256 * 256;
  };
  char* part;
  take(part, work.at_once * work.rows * a.D * 2);
  work.part = part;
  take(work.lse, work.at_once * work.rows * 4);
  take(work.band_count, a.B * a.G * work.bands * w.P * 4);
  take(work.place, a.B * a.G * work.bands * w.P * 4);
  take(work.pair, work.units * work.pairs * 4);
  take(work.item, work.units * work.items * 16);
  take(work.item_count, work.units * 4);
  *bytes = at - static_cast<char*>(memory);
  return work;
}

cudaError_t sort_pairs(const BlockWalk& w, const PairWork& work, cudaStream_t stream) {
  const unsigned bands = w.B * w.G * work.bands;
  const int bytes = fill_bytes(w, work);
  const cudaError_t error =
      cudaFuncSetAttribute(fill_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  count_kernel<<<bands, kThreads, w.P * 4, stream>>>(w, work);
  place_kernel<<<work.units, kThreads, 0, stream>>>(w, work);
  fill_kernel<<<bands, kThreads, bytes, stream>>>(w, work);
  return cudaGetLastError();
}

}  // namespace sigma::kernels::hopper
