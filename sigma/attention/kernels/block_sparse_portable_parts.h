// A column is all that visits a piece. One that many visit (the first block of causal lists) would
// be a long task of one CTA, so columns end at every `length`-th entry, too: tasks are columns up
// to the next such cut, and what is from a cut to the next, if no column begins there. The sums of
// the parts of a column that is cut go to memory, and are added in order. Device code, for
// block_sparse_portable_backward.cu only.
#pragma once

#include "sigma/attention/kernels/block_sparse_portable.h"
#include "sigma/attention/kernels/block_sparse_portable_tile.h"

namespace sigma::kernels {

// A task: entries first .. last - 1 of the (b, g)'s, all of one piece. slot: where its sums go; -1:
// they are those of the whole column. piece -1: no task.
struct Task {
  int piece = -1, first, last;
  int64_t slot = -1;

  // `start`: the columns' begins, walk.col_start of the (b, g).
  __device__ Task(const BlockWalk& walk, const PortableParts& parts, const int32_t* start,
                  int64_t bg, int index) {
    const int length = parts.length, P = static_cast<int>(walk.P);
    if (index < P) {
      piece = index;
      first = start[piece];
      last = start[piece + 1];
      const int cut = first / length + 1;
      if (last <= cut * length) return;
      last = cut * length;
      slot = 2 * (bg * parts.cuts + cut - 1);
      return;
    }
    const int cut = index - P + 1;
    first = cut * length;
    if (first >= start[P]) return;
    const int owner = column_at(start, P, first);
    if (start[owner] == first) return;
    piece = owner;
    last = min(first + length, start[owner + 1]);
    slot = 2 * (bg * parts.cuts + cut - 1) + 1;
  }
  /// The column of an entry: the last that begins at it or before.
  __device__ static int column_at(const int32_t* start, int P, int entry) {
    int low = 0, high = P;  // start[low] <= entry < start[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (start[middle] <= entry) low = middle;
      else high = middle;
    }
    return low;
  }
};

// The sums of the columns whose first cut is the CTA's: a thread has 4 columns of a row of dK or
// dV.
template <typename T, int kWidth>
__global__ void __launch_bounds__(256)
    merge_kernel(const __grid_constant__ BlockWalk walk, const __grid_constant__ BlockSparseGpu a,
                 const PortableParts parts) {
  const int bg = blockIdx.x / parts.cuts, cut = blockIdx.x % parts.cuts + 1;
  const int32_t* const start = walk.col_start + bg * (walk.P + 1);
  const int entry = cut * parts.length;
  if (entry >= start[walk.P]) return;
  const int piece = Task::column_at(start, static_cast<int>(walk.P), entry);
  if (start[piece] == entry || start[piece] < entry - parts.length) return;
  const int index = (blockIdx.y * 256 + threadIdx.x) * 4;
  const int row = index / kWidth, key = row % 64, column = index % kWidth;
  const Keys keys(walk, a, bg, piece);
  const int64_t width = row < 64 ? a.D : a.Dv;
  if (key >= keys.count || column >= width) return;
  const float* from = parts.sums + 2 * (bg * int64_t{parts.cuts} + cut - 1) * 128 * kWidth + index;
  float4 sum = *reinterpret_cast<const float4*>(from);
  from += 128 * kWidth;  // the part from this cut on, then that from the next
  for (int at = entry; at < start[piece + 1]; at += parts.length, from += 2 * 128 * kWidth) {
    const float4 x = *reinterpret_cast<const float4*>(from);
    sum = {sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w};
  }
  const float by = row < 64 ? a.scale : 1;
  const int64_t to = (bg * a.Nk + keys.first + key) * width + column;
  *reinterpret_cast<uint2*>(static_cast<uint16_t*>(row < 64 ? a.grad_k : a.grad_v) + to) = {
      pack<T>(sum.x * by, sum.y * by), pack<T>(sum.z * by, sum.w * by)};
}

}  // namespace sigma::kernels
