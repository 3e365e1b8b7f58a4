#include <cuda_runtime.h>

#include "sigma/moe/kernels/top_k.h"

namespace sigma::kernels {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 8;  // rows of a block

// A warp a row: every lane keeps the values e = lane, lane + 32, ... as keys whose order is that of
// (value descending, place ascending); a taken one becomes 0.
template <int kPer>
__global__ void top_k_kernel(const float* r, int64_t count, int64_t E, int64_t K, int64_t* out) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y;
  if (row >= count) return;
  const int lane = threadIdx.x;
  uint64_t keys[kPer];
  for (int i = 0; i < kPer; ++i) {
    const int64_t e = lane + static_cast<int64_t>(i) * kWarp;
    keys[i] = 0;
    if (e >= E) continue;
    const uint32_t bits = __float_as_uint(r[row * E + e] + 0.0f);  // -0 becomes 0
    const uint32_t ordered = bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
    keys[i] = static_cast<uint64_t>(ordered) << 32 | (0xffffffffu - static_cast<uint32_t>(e));
  }
  for (int64_t k = 0; k < K; ++k) {
    uint64_t best = keys[0];
#pragma unroll
    for (int i = 1; i < kPer; ++i) best = keys[i] > best ? keys[i] : best;
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const uint64_t other = __shfl_xor_sync(~0u, best, step);
      best = other > best ? other : best;
    }
    const uint32_t e = 0xffffffffu - static_cast<uint32_t>(best);
    if (lane == 0) out[row * K + k] = e;
#pragma unroll
    for (int i = 0; i < kPer; ++i) keys[i] = keys[i] == best ? 0 : keys[i];
  }
}

}  // namespace

bool top_k_rows(const float* r, int64_t count, int64_t E, int64_t K, int64_t* out, void* stream) {
  if (count == 0) return true;
  const auto blocks = static_cast<unsigned>((count + kWarps - 1) / kWarps);
  const auto kernel = E <= 64    ? top_k_kernel<2>
                      : E <= 128 ? top_k_kernel<4>
                      : E <= 256 ? top_k_kernel<8>
                                 : top_k_kernel<32>;
  kernel<<<blocks, dim3(kWarp, kWarps), 0, static_cast<cudaStream_t>(stream)>>>(r, count, E, K,
                                                                                out);
  return cudaGetLastError() == cudaSuccess;
}

}  // namespace sigma::kernels
