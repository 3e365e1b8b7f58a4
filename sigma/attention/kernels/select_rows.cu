// The choice by given scores, and how far apart blocks' keys are.
#include <algorithm>

#include "sigma/attention/kernels/select_row.h"

namespace sigma::kernels {
namespace {

constexpr int kThreads = 128;

// One row a thread block. Scores [B,G,R,W].
__global__ void __launch_bounds__(kThreads)
    select_kernel(const SelectBlocksGpu a, const float* scores) {
  extern __shared__ __align__(16) unsigned char memory[];
  const Team<kThreads> team;
  const TeamRoom room = team_room(a, memory);
  float* row_scores = reinterpret_cast<float*>(memory + team_bytes(a));
  const int64_t row = blockIdx.x, pair = blockIdx.y;
  const float* from = scores + (pair * a.R + row) * a.W;
  for (int j = team.rank; j < a.W; j += kThreads) row_scores[j] = from[j];
  team.sync();
  choose_row(a, team, room, row_scores, pair, row);
}

// apart [pairs,W,W], 16 x 16 a thread block, 32 columns of the keys in shared memory at once; norm
// by the thread blocks of the diagonal. Products of floats are exact in double; all sums go over
// the columns in order, so that equal keys have a cosine of exactly 1.
__global__ void __launch_bounds__(256) distances_kernel(const SelectBlocksGpu a) {
  __shared__ double x[32][33];  // keys: 16 of the rows, then 16 of the columns
  __shared__ double squares[32];
  const int thread = static_cast<int>(threadIdx.x);
  const int r = thread / 16, c = thread % 16;
  const int64_t i = blockIdx.x * 16 + r, j = blockIdx.y * 16 + c;
  for (int64_t pair = blockIdx.z; pair < a.B * a.G; pair += gridDim.z) {
    const float* keys = a.keys + pair * a.W * a.D;
    double xy = 0, xx = 0, l1 = 0;
    for (int64_t d0 = 0; d0 < a.D; d0 += 32) {
      for (int k = thread; k < 32 * 32; k += 256) {
        const int64_t row = k / 32, d = d0 + k % 32;
        const int64_t key = (row < 16 ? blockIdx.x : blockIdx.y) * 16 + row % 16;
        x[row][k % 32] = key < a.W && d < a.D ? keys[key * a.D + d] : 0;
      }
      __syncthreads();
#pragma unroll 8
      for (int d = 0; d < 32; ++d) xy = fma(x[r][d], x[16 + c][d], xy);
      if (thread < 32) {  // a key each
        for (int d = 0; d < 32; ++d) {
          const double u = x[thread][d];
          xx = fma(u, u, xx);
          l1 += fabs(u);
        }
      }
      __syncthreads();  // before the next columns
    }
    if (thread < 32) squares[thread] = xx;
    __syncthreads();
    if (thread < 16 && blockIdx.x == blockIdx.y && blockIdx.x * 16 + thread < a.W)
      a.norm[pair * a.W + blockIdx.x * 16 + thread] = static_cast<float>(l1);
    if (i < a.W && j < a.W) {
      float apart = static_cast<float>(1 - xy / sqrt(squares[r] * squares[16 + c]));
      if (i == j) apart = xy > 0 ? 0.0f : xy == 0 ? kNoDirection : NAN;
      a.apart[(pair * a.W + i) * a.W + j] = apart;
    }
    __syncthreads();  // before the next sums
  }
}

}  // namespace

cudaError_t block_distances_gpu(const SelectBlocksGpu& a, cudaStream_t stream) {
  if (a.B * a.G * a.W == 0) return cudaSuccess;
  if (!a.keys || !a.apart || !a.norm || a.W > 16 * 65535) return cudaErrorInvalidValue;
  const auto tiles = static_cast<unsigned>((a.W + 15) / 16);
  const auto pairs = static_cast<unsigned>(std::min<int64_t>(a.B * a.G, 65535));
  distances_kernel<<<dim3(tiles, tiles, pairs), 256, 0, stream>>>(a);
  return cudaGetLastError();
}

cudaError_t select_rows_gpu(const SelectBlocksGpu& a, const float* scores, cudaStream_t stream) {
  if (a.B * a.G * a.R * a.W == 0) return cudaSuccess;
  if (a.R >= int64_t{1} << 31 || a.B * a.G > 65535 || a.n < 1) return cudaErrorInvalidValue;
  if (a.strategy != SelectStrategy::kTopN) {
    const cudaError_t error = block_distances_gpu(a, stream);
    if (error != cudaSuccess) return error;
  }
  const int64_t bytes = team_bytes(a) + a.W * 4;
  const cudaError_t error = cudaFuncSetAttribute(
      select_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error != cudaSuccess) {
    cudaGetLastError();  // more than there is
    return error;
  }
  const dim3 grid(static_cast<unsigned>(a.R), static_cast<unsigned>(a.B * a.G));
  select_kernel<<<grid, kThreads, static_cast<size_t>(bytes), stream>>>(a, scores);
  return cudaGetLastError();
}

}  // namespace sigma::kernels
