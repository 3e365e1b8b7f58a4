#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "sigma/attention/kernels/block_sparse_delta.h"

namespace sigma::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 8;  // of a row; each reads 16 bytes at a time
constexpr float kLog2e = 1.4426950408889634f;

__device__ float2 to_float(__nv_bfloat162 x) { return __bfloat1622float2(x); }
__device__ float2 to_float(__half2 x) { return __half22float2(x); }

template <typename Pair>
__global__ void __launch_bounds__(kThreads)
    delta_kernel(const uint4* grad_out, const uint4* out, const float* lse, float* delta,
                 float2* stats, int64_t rows, int units) {
  const int64_t row = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kLanes;
  float sum = 0;
#pragma unroll 2
  for (int unit = threadIdx.x % kLanes; row < rows && unit < units; unit += kLanes) {
    const uint4 x = grad_out[row * units + unit], y = out[row * units + unit];
    const Pair* const px = reinterpret_cast<const Pair*>(&x);
    const Pair* const py = reinterpret_cast<const Pair*>(&y);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 fx = to_float(px[i]), fy = to_float(py[i]);
      sum += fx.x * fy.x + fx.y * fy.y;
    }
  }
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (row >= rows || threadIdx.x % kLanes != 0) return;
  delta[row] = sum;
  if (stats) stats[row] = make_float2(lse[row] == -INFINITY ? INFINITY : lse[row] * kLog2e, sum);
}

}  // namespace

cudaError_t block_sparse_delta(const BlockSparseGpu& a, float2* stats, cudaStream_t stream) {
  const int64_t rows = a.B * a.H * a.Nq;
  if (a.Dv % 8 != 0) return cudaErrorInvalidValue;
  if (rows == 0) return cudaSuccess;
  constexpr int64_t kRows = kThreads / kLanes;
  const unsigned grid = static_cast<unsigned>((rows + kRows - 1) / kRows);
  const auto kernel = a.half ? delta_kernel<__half2> : delta_kernel<__nv_bfloat162>;
  kernel<<<grid, kThreads, 0, stream>>>(static_cast<const uint4*>(a.grad_out),
                                        static_cast<const uint4*>(a.out), a.lse, a.delta, stats,
                                        rows, static_cast<int>(a.Dv / 8));
  return cudaGetLastError();
}

}  // namespace sigma::kernels
