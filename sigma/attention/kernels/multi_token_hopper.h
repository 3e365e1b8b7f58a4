// Multi-token attention on sequences by wider heads, for Hopper (sm_90a). Torch-free; all pointers
// are device memory, contiguous. Full attention, heads of 64 channels, 16-bit elements.
//
// Query steps are neighbours, a_r = first + r. With the wide keys and values of multi_token_conv.h,
//
//   S'[i,j] = scale sum_r q_{i - a_r} . khat_r[j]      P = softmax(S')
//   y_r[i] = sum_j P[i,j] vhat_r[j]                    out = shift_add(y)
//
// Backward, g the gradient of out and delta = shift_dot(y, g): the maps P and
// dS = P (sum_r g_{i + a_r} . vhat_r[j] - delta[i]) of a few heads and a strip of keys at a time, in
// 16 bits, then
//
//   dkhat_r[j] = scale sum_i dS[i,j] q_{i - a_r}       dvhat_r[j] = sum_i P[i,j] g_{i + a_r}
//   dq_i = scale sum_r sum_j dS[i + a_r, j] khat_r[j]
//
// A step that takes nothing (to make the number of value steps even) has vhat_r = 0.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace sigma::kernels {

constexpr int kMaxSteps1D = 6;  // of queries; after the softmax: 2, 4 or 6

struct WideAttention {
  int64_t heads = 0;  // B * H, or some of them
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

struct WideAttentionGrad : WideAttention {
  const void* grad_out = nullptr;   // [heads, N, 64]
  const float* delta = nullptr;     // [heads, N]
  int64_t first_key = 0, keys = 0;  // the strip; first_key: a multiple of 128
  void* prob = nullptr;             // [heads, N, map_columns(keys)]
  void* grad = nullptr;             // the same: dS
  void* gq = nullptr;               // [heads, N, 64], by the last strip
  float* gq_sum = nullptr;          // of several strips: query_sums(heads, N) floats
  void* gkhat = nullptr;            // [heads, before, N, 64]
  void* gvhat = nullptr;            // [heads, after, N, 64]
};

constexpr int64_t map_columns(int64_t keys) { return (keys + 63) / 64 * 64; }
constexpr int64_t query_sums(int64_t heads, int64_t N) {
  return heads * ((N + 255) / 256) * 256 * 64;
}

/// For each strip, from the first key on, in this order.
cudaError_t wide_attention_maps(const WideAttentionGrad& a, cudaStream_t stream);  // prob, grad
cudaError_t wide_attention_keys(const WideAttentionGrad& a, cudaStream_t stream);  // gkhat, gvhat
cudaError_t wide_attention_queries(const WideAttentionGrad& a, cudaStream_t stream);  // gq

}  // namespace sigma::kernels
