// Small products of gathered rows, float32. Inlined into the kernels that SIGMA_MULTIVERSION compiles
// once an instruction set. Torch-free.
#pragma once

#include <cstdint>
#include <type_traits>

#include "sigma/base/lanes.h"

namespace sigma::kernels {

constexpr int kTile = 6;  // rows of a register tile; its columns are kLanes, every width a multiple

SIGMA_INLINE float max_of(const float* p, int64_t width) {
  Lanes top = load_lanes(p);
  for (int64_t c = kLanes; c < width; c += kLanes) {
    const Lanes x = load_lanes(p + c);
    top = x > top ? x : top;
  }
  float out = top[0];
  for (int i = 1; i < kLanes; ++i) out = top[i] > out ? top[i] : out;
  return out;
}

/// p = exp(scale p - shift) in place; returns the sum.
SIGMA_INLINE float exp_row(float* p, int64_t width, float scale, float shift) {
  Lanes sum = {};
  for (int64_t c = 0; c < width; c += kLanes) {
    const Lanes e = exp_lanes(load_lanes(p + c) * scale - shift);
    store_lanes(p + c, e);
    sum += e;
  }
  float out = 0;
  for (int i = 0; i < kLanes; ++i) out += sum[i];
  return out;
}

// kRows x kLanes of sum_k A[r][k] B[k][.], kept in registers over the sum.
template <int kRows, typename A, typename B, typename Store>
SIGMA_INLINE void gemm_tile(int64_t depth, A left, B right, Store store) {
  Lanes sum[kRows] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const Lanes b = load_lanes(right(k));
    for (int r = 0; r < kRows; ++r) sum[r] += left(r, k) * b;
  }
  for (int r = 0; r < kRows; ++r) store(r, sum[r]);
}

// Tiles of kTile rows, then the rest.
template <typename Make>
SIGMA_INLINE void for_row_tiles(int64_t rows, Make tile) {
  int64_t r = 0;
  for (; r + kTile <= rows; r += kTile) tile(r, std::integral_constant<int, kTile>());
  for (; r + 2 <= rows; r += 2) tile(r, std::integral_constant<int, 2>());
  if (r < rows) tile(r, std::integral_constant<int, 1>());
}

// left(r, k), right(k) + c and store(r, c, x): the elements of A, the rows of B, and where C goes.
template <typename A, typename B, typename Store>
SIGMA_INLINE void gemm(int64_t rows, int64_t depth, int64_t width, A left, B right, Store store) {
  for (int64_t c = 0; c < width; c += kLanes) {
    for_row_tiles(rows, [&](int64_t first, auto size) SIGMA_INLINED {
      gemm_tile<size()>(
          depth, [&](int r, int64_t k) SIGMA_INLINED { return left(first + r, k); },
          [&](int64_t k) SIGMA_INLINED { return right(k) + c; },
          [&](int r, Lanes x) SIGMA_INLINED { store(first + r, c, x); });
    });
  }
}

/// C[r] = A[r] B: A rows given by pointers, B [depth, width], C [rows, stride].
SIGMA_INLINE void gemm_nn(int64_t rows, const float* const* A, int64_t depth, const float* B,
                          int64_t width, float* C, int64_t stride) {
  gemm(
      rows, depth, width, [&](int64_t r, int64_t k) SIGMA_INLINED { return A[r][k]; },
      [&](int64_t k) SIGMA_INLINED { return B + k * width; },
      [&](int64_t r, int64_t c, Lanes x) SIGMA_INLINED { store_lanes(C + r * stride + c, x); });
}

/// C[r] += A[r] B: A and C rows given by pointers, B [depth, width].
SIGMA_INLINE void gemm_nn_add(int64_t rows, const float* const* A, int64_t depth, const float* B,
                              int64_t width, float* const* C) {
  gemm(
      rows, depth, width, [&](int64_t r, int64_t k) SIGMA_INLINED { return A[r][k]; },
      [&](int64_t k) SIGMA_INLINED { return B + k * width; },
      [&](int64_t r, int64_t c, Lanes x) SIGMA_INLINED { add_lanes(C[r] + c, x); });
}

/// C[j] += sum_r A[r][j] B[r]: A [depth, stride], B rows given by pointers, C [rows, width].
SIGMA_INLINE void gemm_tn_add(int64_t rows, int64_t depth, const float* A, int64_t stride,
                              const float* const* B, int64_t width, float* C) {
  gemm(
      rows, depth, width, [&](int64_t j, int64_t k) SIGMA_INLINED { return A[k * stride + j]; },
      [&](int64_t k) SIGMA_INLINED { return B[k]; },
      [&](int64_t j, int64_t c, Lanes x) SIGMA_INLINED { add_lanes(C + j * width + c, x); });
}

}  // namespace sigma::kernels
