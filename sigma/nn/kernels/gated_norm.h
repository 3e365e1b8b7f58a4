// The elementwise part of an adaLN block on the CPU, float32, in one pass over memory each way.
// Torch-free.
//
//   h = x + gate a   (h = x without a)
//   y = LN(h) (1 + scale) + shift,   LN(h) = (h - mean) / sqrt(var + eps) over C
//
// x, a, h, y [B,N,C] contiguous; gate, shift, scale [B,C] with rows `stride` apart; stats [B,N,2] =
// (mean, 1/sqrt(var + eps)). Each call does the samples [first, last).
#pragma once

#include <cstdint>

namespace sigma::kernels {

struct GatedNormForward {
  int64_t N, C, stride;
  const float *x, *a, *gate, *shift, *scale;  // a and gate may be null; then h is not written
  float *h, *y, *stats;
  float eps;
};
void gated_norm_forward(const GatedNormForward& k, int64_t first, int64_t last);

struct GatedNormBackward {
  int64_t N, C, stride;
  const float *h, *a, *gate, *scale, *stats;
  const float *grad_y, *grad_h;  // grad_h may be null
  float *grad_x, *grad_a, *grad_gate, *grad_shift,
      *grad_scale;  // grad_a, grad_gate only with a; the last three [B,C] contiguous
};
void gated_norm_backward(const GatedNormBackward& k, int64_t first, int64_t last);

}  // namespace sigma::kernels
