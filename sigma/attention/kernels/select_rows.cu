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

__device__ double dot(const float* x, const float* y, int64_t D) {
  double sum = 0;
  for (int64_t d = 0; d < D; ++d)
    sum = fma(static_cast<double>(x[d]), static_cast<double>(y[d]), sum);
  return sum;
}

// apart [pairs,W,W], 16 x 16 a thread block; norm by the blocks of the diagonal.
__global__ void __launch_bounds__(256) distances_kernel(const SelectBlocksGpu a) {
  const int64_t i = blockIdx.x * 16 + threadIdx.x / 16, j = blockIdx.y * 16 + threadIdx.x % 16;
  if (i >= a.W || j >= a.W) return;
  for (int64_t pair = blockIdx.z; pair < a.B * a.G; pair += gridDim.z) {
    const float* keys = a.keys + pair * a.W * a.D;
    const double ii = dot(keys + i * a.D, keys + i * a.D, a.D);
    float apart;
    if (i == j) {
      apart = ii > 0 ? 0.0f : ii == 0 ? kNoDirection : NAN;
      double sum = 0;
      for (int64_t d = 0; d < a.D; ++d) sum += fabs(static_cast<double>(keys[i * a.D + d]));
      a.norm[pair * a.W + i] = static_cast<float>(sum);
    } else {
      const double jj = dot(keys + j * a.D, keys + j * a.D, a.D);
      const double ij = dot(keys + i * a.D, keys + j * a.D, a.D);
      apart = static_cast<float>(1 - ij / sqrt(ii * jj));
    }
    a.apart[(pair * a.W + i) * a.W + j] = apart;
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
