// S[32,16] = A[32,D] B[16,D]^T by a warp: what both passes over the compressed keys are made of.
// Device code.
//
// A is in registers, B in shared memory. Both keep their rows as they are in memory, and lane
// (r, c) = (lane / 4, lane % 4) reads 16 bytes at once, columns 32k + 8c .. 32k + 8c + 7 of row r:
// enough for two mma.m16n8k16 (mma.h). These expect other columns in that lane, but a product of
// rows does not change when the columns of both are permuted alike.
//
//   S[i][j][0..3]   rows 16i + r (0, 1) and 16i + r + 8 (2, 3), columns 8j + 2c (0, 2) and + 1
//
// float inputs have the same S by plain multiply-adds.
#pragma once

#include <cstdint>

#include "sigma/attention/kernels/mma.h"
#include "sigma/attention/kernels/select_blocks.h"

namespace sigma::kernels {

constexpr float kLog2e = 1.4426950408889634f;

/// Rows in shared memory, their columns padded to kD by zeros.
template <typename T, int kD>
struct RowTile {
  static constexpr int kUnits = kD * static_cast<int>(sizeof(T)) / 16;  // 16 bytes each, of a row
  uint4* units;

  // Rows lie a multiple of 128 bytes apart. Eight lanes that read four units of two rows would meet
  // in the same banks, were the odd row's fours of units not swapped pairwise.
  __device__ static int place(int row, int unit) {
    if (sizeof(T) == 2) unit ^= (row & 1) << 2;
    return row * kUnits + unit;
  }
  /// Starts copying row `row`, unit `unit` from x [D]; zeros if not there.
  __device__ void copy(int row, int unit, const T* x, int64_t D, bool there) const {
    const int column = unit * 16 / static_cast<int>(sizeof(T));
    there = there && column < D;
    copy_16(shared_address(units + place(row, unit)), there ? x + column : x, there);
  }
};

/// 32 rows, of a warp.
template <typename T, int kD>
struct RowFragments {
  uint4 raw[4][kD / 32];      // [row r, + 8, + 16, + 24][32 columns], on their way
  uint32_t a[2][kD / 16][4];  // [16 rows][16 columns], as mma has them

  /// Starts loading rows first .. first + 31 of x [rows,D]; zeros past its end.
  __device__ void load(const T* x, int64_t first, int64_t rows, int64_t D) {
    const int r = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t row = first + 8 * i + r;
      const T* from = x + row * D + 8 * c;
#pragma unroll
      for (int k = 0; k < kD / 32; ++k) {
        raw[i][k] = row < rows && 32 * k + 8 * c < D
                        ? __ldg(reinterpret_cast<const uint4*>(from + 32 * k))
                        : uint4{0, 0, 0, 0};
      }
    }
  }
  /// What was loaded is the A of multiply from here on.
  __device__ void use() {
    // mma wants its four in neighbouring registers. Mere copies the compiler would repeat for every
    // product; threadIdx.y is 0, which it does not know.
    const uint32_t zero = threadIdx.y;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int k = 0; k < kD / 32; ++k) {
        a[i / 2][2 * k][i % 2] = raw[i][k].x | zero;
        a[i / 2][2 * k][i % 2 + 2] = raw[i][k].y | zero;
        a[i / 2][2 * k + 1][i % 2] = raw[i][k].z | zero;
        a[i / 2][2 * k + 1][i % 2 + 2] = raw[i][k].w | zero;
      }
    }
  }

  /// S of rows row .. row + 15 of the tile; row is a multiple of 8.
  __device__ void multiply(float (&S)[2][2][4], RowTile<T, kD> tile, int row) const {
    const int r = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    const int turn = (r & 1) << 2;
    const uint4* even = tile.units + row * tile.kUnits + r * tile.kUnits + c + turn;
    const uint4* odd = tile.units + row * tile.kUnits + r * tile.kUnits + c - turn;
#pragma unroll
    for (int i = 0; i < 16; ++i) S[i / 8][i / 4 % 2][i % 4] = 0;
#pragma unroll
    for (int k = 0; k < kD / 32; ++k) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const uint4 b = (k % 2 == 0 ? even : odd)[8 * j * tile.kUnits + 4 * k];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          mma<T>(S[i][j], a[i][2 * k], b.x, b.y);
          mma<T>(S[i][j], a[i][2 * k + 1], b.z, b.w);
        }
      }
    }
  }
};

template <int kD>
struct RowFragments<float, kD> {
  const float* next[4];  // rows r, r + 8, r + 16, r + 24; null past the end
  const float* from[4];
  int D;

  __device__ void load(const float* x, int64_t first, int64_t rows, int64_t D_) {
    D = static_cast<int>(D_);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t row = first + 8 * i + threadIdx.x % 32 / 4;
      next[i] = row < rows ? x + row * D_ : nullptr;
    }
  }
  __device__ void use() {
#pragma unroll
    for (int i = 0; i < 4; ++i) from[i] = next[i];
  }

  __device__ void multiply(float (&S)[2][2][4], RowTile<float, kD> tile, int row) const {
#pragma unroll
    for (int i = 0; i < 16; ++i) S[i / 8][i / 4 % 2][i % 4] = 0;
    for (int d = 0; d < D; d += 4) {
      float4 a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        a[i] = from[i] ? __ldg(reinterpret_cast<const float4*>(from[i] + d)) : float4{0, 0, 0, 0};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = row + j / 2 * 8 + 2 * (threadIdx.x % 4) + j % 2;
        const uint4 raw = tile.units[tile.place(at, d / 4)];
        const float4 b = {__uint_as_float(raw.x), __uint_as_float(raw.y), __uint_as_float(raw.z),
                          __uint_as_float(raw.w)};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& s = S[i / 2][j / 2][i % 2 * 2 + j % 2];
          s = fmaf(a[i].x, b.x, s);
          s = fmaf(a[i].y, b.y, s);
          s = fmaf(a[i].z, b.z, s);
          s = fmaf(a[i].w, b.w, s);
        }
      }
    }
  }
};

/// Calls f with a T and a width for the types and the D of `a`; cudaErrorInvalidValue if none fits.
template <class F>
cudaError_t with_type(const SelectBlocksGpu& a, F f) {
  const auto width = [&](auto zero) {
    if (a.D * static_cast<int64_t>(sizeof(zero)) % 16 != 0) return cudaErrorInvalidValue;
    if (a.D <= 64) return f(zero, std::integral_constant<int, 64>());
    if (a.D <= 128) return f(zero, std::integral_constant<int, 128>());
    return cudaErrorInvalidValue;
  };
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  if (!aligned(a.q) || !aligned(a.ck)) return cudaErrorInvalidValue;
  switch (a.type) {
    case SelectType::kFloat32: return width(0.0f);
    case SelectType::kFloat16: return width(__half());
    case SelectType::kBfloat16: return width(__nv_bfloat16());
  }
  return cudaErrorInvalidValue;
}

}  // namespace sigma::kernels
