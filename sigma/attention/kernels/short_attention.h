// Softmax attention of short rows on the CPU, float32. Torch-free.
//
// qkv [B,N,3,H,D] contiguous -> out [B,N,H,D]; P [B,H,N,N] is kept for the backward. Each call does
// the samples [first, last).
#pragma once

#include <cstdint>

namespace sigma::kernels {

struct ShortAttention {
  int64_t N, H, D;
  float scale;
  const float* qkv;
  float* probabilities;
};
void short_attention_forward(const ShortAttention& k, float* out, int64_t first, int64_t last);
/// grad_qkv [B,N,3,H,D], all of it written.
void short_attention_backward(const ShortAttention& k, const float* grad_out, float* grad_qkv,
                              int64_t first, int64_t last);

}  // namespace sigma::kernels
