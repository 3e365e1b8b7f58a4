#include "sigma/attention/kernels/short_attention.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "sigma/attention/kernels/small_gemm.h"
#include "sigma/base/simd.h"

namespace sigma::kernels {
namespace {

// One head's rows, padded with zeros: M [N][Dp], and its transpose [D][Np] where asked.
SIGMA_INLINE void load(const float* __restrict from, int64_t stride, int64_t N, int64_t D,
                       float* __restrict rows, int64_t Dp, float* __restrict transposed,
                       int64_t Np) {
  for (int64_t n = 0; n < N; ++n) {
    if (rows)
      for (int64_t d = 0; d < D; ++d) rows[n * Dp + d] = from[n * stride + d];
    if (transposed)
      for (int64_t d = 0; d < D; ++d) transposed[d * Np + n] = from[n * stride + d];
  }
}

// to [N, D] of rows `stride` apart = left [N, depth] right [depth, Dp]; `line` [N, Dp].
template <typename Left>
SIGMA_INLINE void product(int64_t N, int64_t depth, Left left, const float* right, int64_t D,
                          int64_t Dp, float* line, float* to, int64_t stride) {
  gemm(
      N, depth, Dp, left, [&](int64_t k) SIGMA_INLINED { return right + k * Dp; },
      [&](int64_t r, int64_t c, Lanes x) SIGMA_INLINED { store_lanes(line + r * Dp + c, x); });
  for (int64_t n = 0; n < N; ++n)
    for (int64_t d = 0; d < D; ++d) to[n * stride + d] = line[n * Dp + d];
}

// S [N, Np] = left, rows `stride` apart, times right [D, Np].
SIGMA_INLINE void scores(int64_t N, int64_t D, const float* left, int64_t stride,
                         const float* right, int64_t Np, float* S) {
  gemm(
      N, D, Np, [&](int64_t r, int64_t k) SIGMA_INLINED { return left[r * stride + k]; },
      [&](int64_t k) SIGMA_INLINED { return right + k * Np; },
      [&](int64_t r, int64_t c, Lanes x) SIGMA_INLINED { store_lanes(S + r * Np + c, x); });
}

SIGMA_INLINE void forward(const ShortAttention& k, float* out, int64_t first, int64_t last) {
  const int64_t N = k.N, D = k.D, Np = padded(N), Dp = padded(D), row = 3 * k.H * D;
  std::vector<float> buffer(static_cast<size_t>(D * Np + 2 * N * Dp + N * Np));
  float* key_t = buffer.data();
  float* value = key_t + D * Np;
  float* line = value + N * Dp;
  float* S = line + N * Dp;
  for (int64_t b = first; b < last; ++b) {
    for (int64_t h = 0; h < k.H; ++h) {
      const float* q = k.qkv + b * N * row + h * D;
      load(q + k.H * D, row, N, D, nullptr, Dp, key_t, Np);
      load(q + 2 * k.H * D, row, N, D, value, Dp, nullptr, Np);
      scores(N, D, q, row, key_t, Np, S);
      float* P = k.probabilities + (b * k.H + h) * N * N;
      for (int64_t i = 0; i < N; ++i) {
        float* __restrict s = S + i * Np;
        std::fill(s + N, s + Np, -std::numeric_limits<float>::infinity());
        const float inverse = 1.0f / exp_row(s, Np, k.scale, max_of(s, Np) * k.scale);
        for (int64_t j = 0; j < N; ++j) P[i * N + j] = s[j] *= inverse;
      }
      product(
          N, N, [&](int64_t r, int64_t j) SIGMA_INLINED { return S[r * Np + j]; }, value, D, Dp,
          line, out + b * N * k.H * D + h * D, k.H * D);
    }
  }
}

SIGMA_INLINE void backward(const ShortAttention& k, const float* grad_out, float* grad_qkv,
                           int64_t first, int64_t last) {
  const int64_t N = k.N, D = k.D, Np = padded(N), Dp = padded(D), row = 3 * k.H * D;
  std::vector<float> buffer(static_cast<size_t>(D * Np + 4 * N * Dp + N * Np));
  float* value_t = buffer.data();
  float* query = value_t + D * Np;
  float* key = query + N * Dp;
  float* grad_o = key + N * Dp;
  float* line = grad_o + N * Dp;
  float* dS = line + N * Dp;
  for (int64_t b = first; b < last; ++b) {
    for (int64_t h = 0; h < k.H; ++h) {
      const int64_t at = b * N * row + h * D;
      load(k.qkv + at, row, N, D, query, Dp, nullptr, Np);
      load(k.qkv + at + k.H * D, row, N, D, key, Dp, nullptr, Np);
      load(k.qkv + at + 2 * k.H * D, row, N, D, nullptr, Dp, value_t, Np);
      load(grad_out + b * N * k.H * D + h * D, k.H * D, N, D, grad_o, Dp, nullptr, Np);
      const float* P = k.probabilities + (b * k.H + h) * N * N;
      scores(N, D, grad_o, Dp, value_t, Np, dS);
      for (int64_t i = 0; i < N; ++i) {
        float* __restrict ds = dS + i * Np;
        const float* __restrict p = P + i * N;
        float delta = 0;
        for (int64_t j = 0; j < N; ++j) delta += p[j] * ds[j];
        for (int64_t j = 0; j < N; ++j) ds[j] = p[j] * (ds[j] - delta) * k.scale;
      }
      float* to = grad_qkv + at;
      product(
          N, N, [&](int64_t r, int64_t j) SIGMA_INLINED { return dS[r * Np + j]; }, key, D, Dp,
          line, to, row);
      product(
          N, N, [&](int64_t r, int64_t j) SIGMA_INLINED { return dS[j * Np + r]; }, query, D, Dp,
          line, to + k.H * D, row);
      product(
          N, N, [&](int64_t r, int64_t j) SIGMA_INLINED { return P[j * N + r]; }, grad_o, D, Dp,
          line, to + 2 * k.H * D, row);
    }
  }
}

}  // namespace

SIGMA_MULTIVERSION
void short_attention_forward(const ShortAttention& k, float* out, int64_t first, int64_t last) {
  forward(k, out, first, last);
}

SIGMA_MULTIVERSION
void short_attention_backward(const ShortAttention& k, const float* grad_out, float* grad_qkv,
                              int64_t first, int64_t last) {
  backward(k, grad_out, grad_qkv, first, last);
}

}  // namespace sigma::kernels
