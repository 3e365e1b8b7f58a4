// The tasks of grad_k and grad_v, listed on the device, and the merge of the parts of long columns.
// Three small kernels: how many pairs each column has; which columns are cut, and where the tasks of
// each lie (one CTA, a scan over the columns); the tasks themselves.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <type_traits>

#include "sigma/attention/kernels/block_sparse_delta.h"
#include "sigma/attention/kernels/block_sparse_hopper_grad.h"

namespace sigma::kernels {
namespace {

constexpr int kWarps = 8;       // of a CTA of count and emit: one column each
constexpr int kRun = 8;         // entries of a lane, a step of emit
constexpr int kPlan = 1024;     // threads of plan
constexpr int kShortest = 512;  // a column of at most so many pairs is never cut

// Where a column's entries begin and end in col_chunk, col_chose.
struct Column {
  int64_t first, last;
};
__device__ Column column_of(const BlockWalk& w, int64_t column) {
  const int64_t bg = column / w.P, p = column % w.P;
  const int32_t* start = w.col_start + bg * (w.P + 1) + p;
  return {bg * w.C * w.cap + start[0], bg * w.C * w.cap + start[1]};
}
__device__ int pairs_of(const BlockWalk& w, int64_t entry) {
  return w.col_chose ? __popcll(w.col_chose[entry]) : w.tokens;
}

__global__ void __launch_bounds__(kWarps * 32)
    count_pairs(const __grid_constant__ BlockWalk w, const GradWork work, int64_t columns) {
  const int64_t column = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (column >= columns) return;
  const Column c = column_of(w, column);
  int sum = 0;
  if (w.col_chose) {
#pragma unroll 8
    for (int64_t e = c.first + threadIdx.x % 32; e < c.last; e += 32) sum += pairs_of(w, e);
    sum = __reduce_add_sync(~0u, sum);
  } else {
    sum = int(c.last - c.first) * w.tokens;
  }
  if (threadIdx.x % 32 == 0) work.weight[column] = sum;
}

// The sum over the CTA's threads before this one, and of all (in `total`). Integers, so exact.
__device__ int64_t scan(int64_t x, int64_t* total) {
  __shared__ int64_t of_warp[kPlan / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int64_t sum = x;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int64_t left = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += left;
  }
  __syncthreads();
  if (lane == 31) of_warp[warp] = sum;
  __syncthreads();
  int64_t before = 0, all = 0;
  for (int i = 0; i < kPlan / 32; ++i) {
    if (i < warp) before += of_warp[i];
    all += of_warp[i];
  }
  *total = all;
  return before + sum - x;
}

__global__ void __launch_bounds__(kPlan) plan_tasks(const GradWork work, int64_t columns) {
  // Each thread has a run of neighbouring columns.
  const int64_t run = (columns + kPlan - 1) / kPlan;
  const int64_t first = min(columns, threadIdx.x * run), last = min(columns, first + run);
  int64_t pairs = 0, total;
  for (int64_t c = first; c < last; ++c) pairs += work.weight[c];
  scan(pairs, &total);
  const int64_t limit = max(int64_t(kShortest), (total + kTarget - 1) / kTarget);
  int64_t parts = 0, cut = 0, all_parts, all_cut;
  for (int64_t c = first; c < last; ++c) {
    const int64_t weight = work.weight[c];
    if (weight > limit) parts += (weight + limit - 1) / limit, ++cut;
  }
  int64_t base = scan(parts, &all_parts);
  int64_t before = scan(cut, &all_cut);
  int64_t single = all_parts + first - before;  // the short columns' tasks come behind
  for (int64_t c = first; c < last; ++c) {
    const int64_t weight = work.weight[c];
    const bool is_long = weight > limit;
    const int64_t n = is_long ? (weight + limit - 1) / limit : 1;
    work.base[c] = int32_t(is_long ? base : single);
    work.parts[c] = int32_t(n);
    if (is_long) work.long_column[before++] = int32_t(c), base += n;
    else ++single;
  }
  if (threadIdx.x == 0) {
    work.totals[0] = int32_t(all_parts + columns - all_cut);
    work.totals[1] = int32_t(all_cut);
    work.totals[2] = int32_t(limit);
  }
}

// Part i of a long column has the entries before which the column has i limit .. (i + 1) limit - 1
// pairs. An entry has at most 64 pairs, so no part but perhaps the last is empty.
__global__ void __launch_bounds__(kWarps * 32)
    emit_tasks(const __grid_constant__ BlockWalk w, const GradWork work, int64_t columns) {
  const int64_t column = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (column >= columns) return;
  const int lane = threadIdx.x % 32;
  const Column c = column_of(w, column);
  const int n = int(c.last - c.first), parts = work.parts[column], base = work.base[column];
  GradTask* task = work.task + base;
  if (parts == 1) {
    if (lane == 0) *task = {int32_t(column), 0, n, -1};
    return;
  }
  for (int i = lane; i < parts; i += 32) task[i] = {int32_t(column), n, n, base + i};
  __syncwarp();
  const int limit = work.totals[2];
  int before = 0, last_part = -1;  // pairs before this step's entries, the part of the one before
  for (int from = 0; from < n; from += 32 * kRun) {
    const int first = from + lane * kRun;  // of this lane's entries
    int pairs[kRun], sum = 0;
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      pairs[i] = first + i < n ? pairs_of(w, c.first + first + i) : 0;
      sum += pairs[i];
    }
    const int mine = sum;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int left = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += left;
    }
    int at = before + sum - mine;                                // pairs before the next entry
    const int end_part = (at + mine - pairs[kRun - 1]) / limit;  // of this lane's last entry
    const int left = __shfl_up_sync(~0u, end_part, 1);
    int previous = lane == 0 ? last_part : left;
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const int part = at / limit;
      if (first + i < n && part != previous) {
        task[part].first = first + i;
        if (part > 0) task[part - 1].last = first + i;
      }
      previous = part, at += pairs[i];
    }
    before += __shfl_sync(~0u, sum, 31);
    last_part = __shfl_sync(~0u, end_part, 31);
  }
}

// grad_k and grad_v of the long columns: the sum of their parts, in order. blockIdx.x: which long
// column; .y: 256 x 4 of the 2 x 64 x D sums.
template <class T2>
__global__ void __launch_bounds__(256)
    merge_parts(const __grid_constant__ BlockWalk w, const GradWork work, int64_t Nk, int D,
                float scale, void* grad_k, void* grad_v) {
  if (int(blockIdx.x) >= work.totals[1]) return;
  const int64_t column = work.long_column[blockIdx.x];
  const int at = (blockIdx.y * 256 + threadIdx.x) * 4, size = 64 * D;
  const bool is_v = at >= size;
  const int row = at % size / D, d = at % D, piece = int(column % w.P);
  if (row >= w.key_first[piece + 1] - w.key_first[piece]) return;
  float4 sum = {0, 0, 0, 0};
  const float* part = work.partial + int64_t(work.base[column]) * 2 * size + at;
  for (int i = 0; i < work.parts[column]; ++i, part += 2 * size) {
    const float4 x = *reinterpret_cast<const float4*>(part);
    sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
  }
  const float by = is_v ? 1 : scale;
  T2 pair[2];
  pair[0].x = sum.x * by, pair[0].y = sum.y * by, pair[1].x = sum.z * by, pair[1].y = sum.w * by;
  const int64_t to = ((column / w.P) * Nk + w.key_first[piece] + row) * D + d;
  *reinterpret_cast<uint2*>(static_cast<char*>(is_v ? grad_v : grad_k) + to * 2) =
      *reinterpret_cast<uint2*>(pair);
}

int64_t columns_of(const BlockWalk& w) { return w.B * w.G * w.P; }

}  // namespace

namespace {

// The parts of the workspace from `memory` on; `end`: where it ends.
GradWork layout(const BlockSparseGpu& a, const BlockWalk& w, uintptr_t memory, uintptr_t* end) {
  const int64_t columns = columns_of(w);
  const auto take = [&memory](auto*& part, int64_t count) {
    part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(memory);
    memory += (count * int64_t(sizeof(*part)) + 255) / 256 * 256;
  };
  GradWork work;
  take(work.stats, a.B * a.H * a.Nq);
  take(work.weight, columns);
  take(work.base, columns);
  take(work.parts, columns);
  take(work.long_column, kTarget);
  take(work.totals, 3);
  take(work.task, columns + 2 * kTarget);
  take(work.partial, int64_t(2 * kTarget) * 2 * 64 * a.D);
  *end = memory;
  return work;
}

}  // namespace

GradWork block_sparse_hopper_grad_work(const BlockSparseGpu& a, const BlockWalk& w, void* memory) {
  uintptr_t end;
  return layout(a, w, reinterpret_cast<uintptr_t>(memory), &end);
}

int64_t block_sparse_hopper_grad_bytes(const BlockSparseGpu& a, const BlockWalk& w) {
  uintptr_t end;
  layout(a, w, 0, &end);
  return int64_t(end);
}

cudaError_t block_sparse_hopper_grad_tasks(const BlockSparseGpu&, const BlockWalk& w,
                                           const GradWork& work, cudaStream_t stream) {
  const int64_t columns = columns_of(w);
  const unsigned blocks = unsigned((columns + kWarps - 1) / kWarps);
  count_pairs<<<blocks, kWarps * 32, 0, stream>>>(w, work, columns);
  plan_tasks<<<1, kPlan, 0, stream>>>(work, columns);
  emit_tasks<<<blocks, kWarps * 32, 0, stream>>>(w, work, columns);
  return cudaGetLastError();
}

cudaError_t block_sparse_hopper_grad_merge(const BlockSparseGpu& a, const BlockWalk& w,
                                           const GradWork& work, cudaStream_t stream) {
  const dim3 grid(unsigned(std::min<int64_t>(kTarget, columns_of(w))),
                  unsigned(2 * 64 * a.D / 1024));
  if (a.half)
    merge_parts<__half2>
        <<<grid, 256, 0, stream>>>(w, work, a.Nk, int(a.D), a.scale, a.grad_k, a.grad_v);
  else
    merge_parts<__nv_bfloat162>
        <<<grid, 256, 0, stream>>>(w, work, a.Nk, int(a.D), a.scale, a.grad_k, a.grad_v);
  return cudaGetLastError();
}

cudaError_t block_sparse_hopper_grad(const BlockSparseGpu& a, const BlockWalk& w, void* memory,
                                     cudaStream_t stream) {
  if (a.B * a.H * a.Nq == 0 || a.B * a.G * a.Nk == 0) {  // nobody sees anything
    const int64_t rows = a.B * a.H * a.Nq, keys = a.B * a.G * a.Nk;
    if (rows > 0) cudaMemsetAsync(a.delta, 0, rows * 4, stream);
    if (rows > 0) cudaMemsetAsync(a.grad_q, 0, rows * a.D * 2, stream);
    if (keys > 0) cudaMemsetAsync(a.grad_k, 0, keys * a.D * 2, stream);
    if (keys > 0) cudaMemsetAsync(a.grad_v, 0, keys * a.Dv * 2, stream);
    return cudaGetLastError();
  }
  const GradWork work = block_sparse_hopper_grad_work(a, w, memory);
  cudaError_t error = block_sparse_delta(a, work.stats, stream);
  if (error == cudaSuccess) error = block_sparse_hopper_grad_q(a, w, work, stream);
  if (error == cudaSuccess) error = block_sparse_hopper_grad_tasks(a, w, work, stream);
  if (error == cudaSuccess)
    error = w.col_chose ? block_sparse_hopper_grad_kv(a, w, work, stream)
                        : block_sparse_hopper_grad_kv_tiles(a, w, work, stream);
  if (error == cudaSuccess) error = block_sparse_hopper_grad_merge(a, w, work, stream);
  return error;
}

}  // namespace sigma::kernels
