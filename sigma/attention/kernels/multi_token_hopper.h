// Multi-token attention on sequences by wider heads, for Hopper (sm_90a). Torch-free; all pointers
// are device memory, contiguous. Full attention, heads of 64 channels, 16-bit elements.
//
// Query steps are neighbours, a_r = first + r. With the wide keys and values of multi_token_conv.h,
//
//   S'[i,j] = scale sum_r q_{i - a_r} . khat_r[j]      P = softmax(S')
//   y_r[i] = sum_j P[i,j] vhat_r[j]                    out = shift_add(y)
//
// A step that takes nothing (to make the number of value steps even) has vhat_r = 0.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace sigma::kernels {

constexpr int kMaxBeforeSteps = 9;  // of queries, before the softmax
constexpr int kMaxAfterSteps = 6;   // after it: 2, 4 or 6

struct WideAttention {
  int64_t heads = 0;  // B * H
  int64_t N = 0;
  bool half = false;  // float16, else bfloat16
  int before_first = 0, before = 1;
  int after_first = 0, after = 2;
  float scale = 1;
  const void* q = nullptr;     // [heads, N, 64]
  const void* khat = nullptr;  // [heads, before, N, 64]
  const void* vhat = nullptr;  // [heads, after, N, 64]
  void* y = nullptr;           // [heads, after, N, 64]
  float* lse = nullptr;        // [heads, N] natural logarithm
};

cudaError_t wide_attention(const WideAttention& a, cudaStream_t stream);

}  // namespace sigma::kernels
