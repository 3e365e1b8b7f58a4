// delta = grad_out . out, a dot product a row, in fp32; the first step of the backward. It reads two
// tensors once, so its floor is memory: 16-byte loads, a row to Dv / 8 neighbouring lanes.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "sigma/attention/kernels/block_sparse_hopper_grad.h"

namespace sigma::kernels {
namespace {

constexpr int kThreads = 256;
constexpr float kLog2e = 1.4426950408889634f;

__device__ float2 widen(__nv_bfloat162 x) { return __bfloat1622float2(x); }
__device__ float2 widen(__half2 x) { return __half22float2(x); }

// T2: pairs of elements; lanes: how many threads share a row, each 8 elements of it.
template <class T2, int lanes>
__global__ void __launch_bounds__(kThreads)
    delta_rows(const uint4* grad_out, const uint4* out, const float* lse, int64_t rows,
               float* delta, float2* stats) {
  const int64_t thread = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = thread / lanes;
  float sum = 0;
  if (row < rows) {
    const uint4 x = grad_out[thread], y = out[thread];
    const T2 *a = reinterpret_cast<const T2*>(&x), *b = reinterpret_cast<const T2*>(&y);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 p = widen(a[i]), q = widen(b[i]);
      sum = fmaf(p.x, q.x, fmaf(p.y, q.y, sum));
    }
  }
#pragma unroll
  for (int step = lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (row >= rows || thread % lanes != 0) return;
  if (delta) delta[row] = sum;
  if (!stats) return;
  const float l = lse[row];
  stats[row] = make_float2(l == -INFINITY ? INFINITY : l * kLog2e, sum);
}

template <class T2, int lanes>
cudaError_t launch(const BlockSparseGpu& a, float2* stats, cudaStream_t stream) {
  const int64_t rows = a.B * a.H * a.Nq;
  if (rows == 0) return cudaSuccess;
  delta_rows<T2, lanes>
      <<<unsigned((rows * lanes + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
          static_cast<const uint4*>(a.grad_out), static_cast<const uint4*>(a.out), a.lse, rows,
          a.delta, stats);
  return cudaGetLastError();
}

}  // namespace

cudaError_t block_sparse_hopper_stats(const BlockSparseGpu& a, float2* stats, cudaStream_t stream) {
  if (a.Dv == 64)
    return a.half ? launch<__half2, 8>(a, stats, stream)
                  : launch<__nv_bfloat162, 8>(a, stats, stream);
  if (a.Dv == 128)
    return a.half ? launch<__half2, 16>(a, stats, stream)
                  : launch<__nv_bfloat162, 16>(a, stats, stream);
  return cudaErrorInvalidValue;
}

}  // namespace sigma::kernels
