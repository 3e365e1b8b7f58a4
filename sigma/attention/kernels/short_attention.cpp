#include "sigma/attention/kernels/short_attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "sigma/base/simd.h"

#pragma STDC FP_CONTRACT ON

namespace sigma::kernels {
namespace {

constexpr int kLanes = 32;

int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Every product of attention is a sum of weighted rows: out[0..width) = sum_r w[r * step]
// X[r][0..width), width a multiple of kLanes. The accumulators stay in registers over the whole
// sum.
inline __attribute__((always_inline)) void weighted_rows(float* __restrict out,
                                                         const float* __restrict w, int64_t step,
                                                         int64_t rows, const float* __restrict X,
                                                         int64_t width) {
  for (int64_t at = 0; at < width; at += kLanes) {
    float sum[kLanes] = {};
    for (int64_t r = 0; r < rows; ++r) {
      const float weight = w[r * step];
      const float* __restrict x = X + r * width + at;
      for (int i = 0; i < kLanes; ++i) sum[i] += weight * x[i];
    }
    for (int i = 0; i < kLanes; ++i) out[at + i] = sum[i];
  }
}

// One head's rows, padded with zeros: M [N][Dp], and its transpose [D][Np] where asked.
inline __attribute__((always_inline)) void load(const float* __restrict from, int64_t stride,
                                                int64_t N, int64_t D, float* __restrict rows,
                                                int64_t Dp, float* __restrict transposed,
                                                int64_t Np) {
  for (int64_t n = 0; n < N; ++n) {
    if (rows) {
      for (int64_t d = 0; d < D; ++d) rows[n * Dp + d] = from[n * stride + d];
    }
    if (transposed) {
      for (int64_t d = 0; d < D; ++d) transposed[d * Np + n] = from[n * stride + d];
    }
  }
}

}  // namespace

SIGMA_MULTIVERSION
void short_attention_forward(const ShortAttention& k, float* out, int64_t first, int64_t last) {
  const int64_t N = k.N, D = k.D, Np = padded(N), Dp = padded(D), row = 3 * k.H * D;
  std::vector<float> buffer(static_cast<size_t>(D * Np + N * Dp + Np + Dp));
  float* key_t = buffer.data();
  float* value = key_t + D * Np;
  float* p = value + N * Dp;
  float* o = p + Np;
  for (int64_t b = first; b < last; ++b) {
    for (int64_t h = 0; h < k.H; ++h) {
      const float* q = k.qkv + b * N * row + h * D;
      load(q + k.H * D, row, N, D, nullptr, Dp, key_t, Np);
      load(q + 2 * k.H * D, row, N, D, value, Dp, nullptr, Np);
      float* P = k.probabilities + (b * k.H + h) * N * N;
      for (int64_t i = 0; i < N; ++i) {
        weighted_rows(p, q + i * row, 1, D, key_t, Np);
        float top = p[0];
        for (int64_t j = 1; j < N; ++j) top = std::max(top, p[j]);
        float sum = 0;
        for (int64_t j = 0; j < N; ++j) {
          p[j] = std::exp((p[j] - top) * k.scale);
          sum += p[j];
        }
        const float inverse = 1.0f / sum;
        for (int64_t j = 0; j < N; ++j) P[i * N + j] = p[j] * inverse;
        weighted_rows(o, P + i * N, 1, N, value, Dp);
        float* to = out + (b * N + i) * k.H * D + h * D;
        for (int64_t d = 0; d < D; ++d) to[d] = o[d];
      }
    }
  }
}

SIGMA_MULTIVERSION
void short_attention_backward(const ShortAttention& k, const float* grad_out, float* grad_qkv,
                              int64_t first, int64_t last) {
  const int64_t N = k.N, D = k.D, Np = padded(N), Dp = padded(D), row = 3 * k.H * D;
  std::vector<float> buffer(static_cast<size_t>(D * Np + 3 * N * Dp + N * Np + std::max(Np, Dp)));
  float* value_t = buffer.data();
  float* query = value_t + D * Np;
  float* key = query + N * Dp;
  float* grad_o = key + N * Dp;
  float* dS = grad_o + N * Dp;
  float* line = dS + N * Np;
  for (int64_t b = first; b < last; ++b) {
    for (int64_t h = 0; h < k.H; ++h) {
      const int64_t at = b * N * row + h * D;
      load(k.qkv + at, row, N, D, query, Dp, nullptr, Np);
      load(k.qkv + at + k.H * D, row, N, D, key, Dp, nullptr, Np);
      load(k.qkv + at + 2 * k.H * D, row, N, D, nullptr, Dp, value_t, Np);
      load(grad_out + b * N * k.H * D + h * D, k.H * D, N, D, grad_o, Dp, nullptr, Np);
      const float* P = k.probabilities + (b * k.H + h) * N * N;
      for (int64_t i = 0; i < N; ++i) {
        float* __restrict ds = dS + i * Np;
        const float* __restrict p = P + i * N;
        weighted_rows(ds, grad_o + i * Dp, 1, D, value_t, Np);
        float delta = 0;
        for (int64_t j = 0; j < N; ++j) delta += p[j] * ds[j];
        for (int64_t j = 0; j < N; ++j) ds[j] = p[j] * (ds[j] - delta) * k.scale;
      }
      for (int64_t i = 0; i < N; ++i) {
        float* gq = grad_qkv + at + i * row;
        weighted_rows(line, dS + i * Np, 1, N, key, Dp);
        for (int64_t d = 0; d < D; ++d) gq[d] = line[d];
        weighted_rows(line, dS + i, Np, N, query, Dp);
        for (int64_t d = 0; d < D; ++d) gq[k.H * D + d] = line[d];
        weighted_rows(line, P + i, N, N, grad_o, Dp);
        for (int64_t d = 0; d < D; ++d) gq[2 * k.H * D + d] = line[d];
      }
    }
  }
}

}  // namespace sigma::kernels
