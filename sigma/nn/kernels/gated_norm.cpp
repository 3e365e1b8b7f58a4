#include "sigma/nn/kernels/gated_norm.h"

#include <cmath>

#include "sigma/base/simd.h"

#pragma STDC FP_CONTRACT ON

namespace sigma::kernels {
namespace {

constexpr int kLanes = 16;

// Sums keep kLanes partial sums, so that they vectorise and stay accurate.
struct Lanes {
  float v[kLanes] = {};
  inline __attribute__((always_inline)) float total() const {
    float sum = 0;
    for (int i = 0; i < kLanes; ++i) sum += v[i];
    return sum;
  }
};

}  // namespace

SIGMA_MULTIVERSION
void gated_norm_forward(const GatedNormForward& k, int64_t first, int64_t last) {
  const int64_t C = k.C;
  const int64_t whole = C / kLanes * kLanes;
  for (int64_t row = first * k.N; row < last * k.N; ++row) {
    const int64_t b = row / k.N;
    const float* shift = k.shift + b * k.stride;
    const float* scale = k.scale + b * k.stride;
    const float* h = k.x + row * C;
    Lanes sum;
    float tail = 0;
    if (k.a) {
      const float* gate = k.gate + b * k.stride;
      const float* a = k.a + row * C;
      const float* x = h;
      float* out = k.h + row * C;
      for (int64_t c = 0; c < C; ++c) out[c] = x[c] + gate[c] * a[c];
      h = out;
    }
    for (int64_t c = 0; c < whole; c += kLanes) {
      for (int i = 0; i < kLanes; ++i) sum.v[i] += h[c + i];
    }
    for (int64_t c = whole; c < C; ++c) tail += h[c];
    const float mean = (sum.total() + tail) / static_cast<float>(C);
    Lanes squares;
    tail = 0;
    for (int64_t c = 0; c < whole; c += kLanes) {
      for (int i = 0; i < kLanes; ++i) {
        const float d = h[c + i] - mean;
        squares.v[i] += d * d;
      }
    }
    for (int64_t c = whole; c < C; ++c) tail += (h[c] - mean) * (h[c] - mean);
    const float rstd = 1.0f / std::sqrt((squares.total() + tail) / static_cast<float>(C) + k.eps);
    float* y = k.y + row * C;
    for (int64_t c = 0; c < C; ++c) y[c] = (h[c] - mean) * rstd * (1.0f + scale[c]) + shift[c];
    k.stats[2 * row] = mean;
    k.stats[2 * row + 1] = rstd;
  }
}

SIGMA_MULTIVERSION
void gated_norm_backward(const GatedNormBackward& k, int64_t first, int64_t last) {
  const int64_t C = k.C;
  const int64_t whole = C / kLanes * kLanes;
  for (int64_t b = first; b < last; ++b) {
    const float* scale = k.scale + b * k.stride;
    float* grad_shift = k.grad_shift + b * C;
    float* grad_scale = k.grad_scale + b * C;
    float* grad_gate = k.a ? k.grad_gate + b * C : nullptr;
    for (int64_t c = 0; c < C; ++c) grad_shift[c] = grad_scale[c] = 0;
    if (k.a) {
      for (int64_t c = 0; c < C; ++c) grad_gate[c] = 0;
    }
    for (int64_t row = b * k.N; row < (b + 1) * k.N; ++row) {
      const float mean = k.stats[2 * row];
      const float rstd = k.stats[2 * row + 1];
      const float* h = k.h + row * C;
      const float* gy = k.grad_y + row * C;
      float* gx = k.grad_x + row * C;
      // d LN = gy (1 + scale);  dh = rstd (d - mean(d) - n mean(d n)),  n = (h - mean) rstd
      Lanes sum_d, sum_dn;
      float tail_d = 0, tail_dn = 0;
      for (int64_t c = 0; c < whole; c += kLanes) {
        for (int i = 0; i < kLanes; ++i) {
          const float d = gy[c + i] * (1.0f + scale[c + i]);
          sum_d.v[i] += d;
          sum_dn.v[i] += d * ((h[c + i] - mean) * rstd);
        }
      }
      for (int64_t c = whole; c < C; ++c) {
        const float d = gy[c] * (1.0f + scale[c]);
        tail_d += d;
        tail_dn += d * ((h[c] - mean) * rstd);
      }
      const float mean_d = (sum_d.total() + tail_d) / static_cast<float>(C);
      const float mean_dn = (sum_dn.total() + tail_dn) / static_cast<float>(C);
      for (int64_t c = 0; c < C; ++c) {
        const float n = (h[c] - mean) * rstd;
        grad_shift[c] += gy[c];
        grad_scale[c] += gy[c] * n;
        gx[c] = rstd * (gy[c] * (1.0f + scale[c]) - mean_d - n * mean_dn);
      }
      if (k.grad_h) {
        const float* gh = k.grad_h + row * C;
        for (int64_t c = 0; c < C; ++c) gx[c] += gh[c];
      }
      if (k.a) {
        const float* gate = k.gate + b * k.stride;
        const float* a = k.a + row * C;
        float* ga = k.grad_a + row * C;
        for (int64_t c = 0; c < C; ++c) {
          ga[c] = gate[c] * gx[c];
          grad_gate[c] += a[c] * gx[c];
        }
      }
    }
  }
}

}  // namespace sigma::kernels
