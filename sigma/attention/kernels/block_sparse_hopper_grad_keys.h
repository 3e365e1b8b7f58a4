// What both kernels of grad_k and grad_v share: which of them an input takes, and their end, when a
// warpgroup has the sums of a piece's 64 keys in its accumulators, dK still without the scale.
#pragma once

#include <type_traits>

#include "sigma/attention/kernels/block_sparse_hopper_grad.h"
#include "sigma/attention/kernels/hopper.h"

namespace sigma::kernels::hopper {

// launch(type, width) of the input, if there is one; width is an integral_constant.
template <class Launch>
cudaError_t launch_grad_kv(const BlockSparseGpu& a, const BlockWalk& w, Launch launch) {
  if (w.B * w.G * w.P == 0) return cudaSuccess;
  if (a.D != a.Dv || (a.D != 64 && a.D != 128)) return cudaErrorInvalidValue;
  const auto of_type = [&](auto width) {
    return a.half ? launch(__half(), width) : launch(__nv_bfloat16(), width);
  };
  return a.D == 64 ? of_type(std::integral_constant<int, 64>())
                   : of_type(std::integral_constant<int, 128>());
}

// To grad_k and grad_v, or, where they are part `slot` >= 0 of a long column, to the workspace. The
// piece is `keys` keys from first_key on of the key/value head bg = b G + g.
template <class T, int D>
__device__ inline void store_sums(const BlockSparseGpu& a, const GradWork& work, int slot,
                                  int64_t bg, int first_key, int keys, const float (&dk)[D / 2],
                                  const float (&dv)[D / 2]) {
  const int lane = threadIdx.x % 32;
  // Rows r and r + 8, columns 8j + 2 (lane % 4) and the next one.
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = threadIdx.x / 32 * 16 + lane / 4 + half * 8;
    if (row >= keys) continue;
    const int64_t at = (bg * a.Nk + first_key + row) * (D / 2) + lane % 4;
    float2* part = reinterpret_cast<float2*>(work.partial) +
                   (int64_t(max(slot, 0)) * 128 + row) * (D / 2) + lane % 4;
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
      const float k0 = dk[4 * j + 2 * half], k1 = dk[4 * j + 2 * half + 1];
      const float v0 = dv[4 * j + 2 * half], v1 = dv[4 * j + 2 * half + 1];
      if (slot >= 0) {
        part[4 * j] = make_float2(k0, k1);
        part[4 * j + 32 * D] = make_float2(v0, v1);
      } else {
        static_cast<uint32_t*>(a.grad_k)[at + 4 * j] = pack(T(), k0 * a.scale, k1 * a.scale);
        static_cast<uint32_t*>(a.grad_v)[at + 4 * j] = pack(T(), v0, v1);
      }
    }
  }
}

}  // namespace sigma::kernels::hopper
