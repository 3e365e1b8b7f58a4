// The matrix instructions of sm_80 and later, as a warp uses them. Device code, torch-free.
//
// mma.m16n8k16: C[16,8] += A[16,16] B[16,8], A and B 16-bit, C float. The 32 lanes of a warp share
// each matrix; lane l, with r = l / 4 and c = 2 (l % 4), holds
//
//   A   a[0] (r, c)   a[1] (r+8, c)   a[2] (r, c+8)   a[3] (r+8, c+8)    two columns c, c+1 each
//   B   b[0] (c, r)   b[1] (c+8, r)                                      two rows c, c+1 each
//   C   c[0] (r, c)   c[1] (r, c+1)   c[2] (r+8, c)   c[3] (r+8, c+1)
//
// Two neighbouring C, rounded to 16 bits, are thus an A: a product of a product (softmax(Q K^T) V)
// needs no trip through shared memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace sigma::kernels {

/// 64 rows of up to kWidth 16-bit numbers in shared memory. The eight 16-byte units of every 128
/// bytes are permuted by the row (unit ^ row % 8), so that a column of eight units, which ldmatrix
/// reads at once, touches all 32 banks instead of 4.
template <int kWidth>
struct Tile {
  static constexpr int kUnits = kWidth / 8;
  static constexpr int kRowBytes = kWidth <= 64 ? 128 : kWidth <= 128 ? 256 : 512;
  static constexpr int kBytes = 64 * kRowBytes;
  uint32_t base;  // shared address, a multiple of kRowBytes

  __device__ uint32_t at(int row, int unit) const {
    return base + row * kRowBytes + ((unit ^ (row & 7)) << 4);
  }
  /// at(row + 8 rows_8, unit + units) for an even `units` and a unit of 0 or 1: one xor and an
  /// offset known at compile time, from an address that a lane computes once.
  __device__ static uint32_t move(uint32_t at, int rows_8, int units) {
    return (at ^ (units << 4)) + 8 * rows_8 * kRowBytes;
  }
};

__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

/// Copies 16 bytes without passing registers; zeros instead if not `there`.
__device__ inline void copy_16(uint32_t to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
}

__device__ inline void copy_4(uint32_t to, const void* from, bool there) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from),
               "r"(there ? 4 : 0)
               : "memory");
}

/// Waits for all copies of this thread; a barrier makes those of the others visible.
__device__ inline void wait_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

/// Four 8x8 matrices; lanes 8i..8i+7 name the rows of matrix i.
__device__ inline void load_matrix(uint32_t (&f)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3])
               : "r"(address)
               : "memory");
}

__device__ inline void load_matrix_transposed(uint32_t (&f)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3])
               : "r"(address)
               : "memory");
}

/// A fragment: rows row..row+15 and columns 16k..16k+15 of a tile.
template <int kWidth>
__device__ void load_a(uint32_t (&f)[4], Tile<kWidth> tile, int row, int k) {
  const int lane = threadIdx.x % 32;
  load_matrix(f, tile.move(tile.at(lane % 16, lane / 16), row / 8, 2 * k));
}

/// Two B fragments of the tile turned round: rows row..row+7 are f[0], f[1]; row+8..row+15 the rest.
template <int kWidth>
__device__ void load_b_transposed(uint32_t (&f)[4], Tile<kWidth> tile, int row, int k) {
  const int lane = threadIdx.x % 32;
  load_matrix(f, tile.move(tile.at(lane / 16 * 8 + lane % 8, lane / 8 % 2), row / 8, 2 * k));
}

/// Two B fragments: rows 16k..16k+15, columns 8 unit.. are f[0], f[1]; the next eight the rest.
template <int kWidth>
__device__ void load_b(uint32_t (&f)[4], Tile<kWidth> tile, int k, int unit) {
  const int lane = threadIdx.x % 32;
  load_matrix_transposed(f, tile.move(tile.at(lane % 16, lane / 16), 2 * k, unit));
}

template <typename T>
__device__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ inline void mma<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                          uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ inline void mma<__half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                   uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Two floats, rounded, in one register; the first in the low half.
template <typename T>
__device__ uint32_t pack(float low, float high) {
  uint32_t both;
  if constexpr (std::is_same_v<T, __half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  }
  return both;
}

/// 2^x; 0 for -inf.
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// c[16,64] += a[row.., W] b[64,W]^T
template <typename T, int kWidth>
__device__ void multiply_transposed(float (&c)[8][4], Tile<kWidth> a, int row, Tile<kWidth> b) {
#pragma unroll 2  // more would take the registers of the sums
  for (int k = 0; k < kWidth / 16; ++k) {
    uint32_t fa[4];
    load_a(fa, a, row, k);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      uint32_t fb[4];
      load_b_transposed(fb, b, 16 * j, k);
      mma<T>(c[2 * j], fa, fb[0], fb[1]);
      mma<T>(c[2 * j + 1], fa, fb[2], fb[3]);
    }
  }
}

/// c[16,8n] += a[16,64] b[64, 8 unit..8 unit + 8n-1]
template <typename T, int kWidth, int n>
__device__ void multiply(float (&c)[n][4], const uint32_t (&a)[4][4], Tile<kWidth> b, int unit) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int j = 0; j < n / 2; ++j) {
      uint32_t fb[4];
      load_b(fb, b, k, unit + 2 * j);
      mma<T>(c[2 * j], a[k], fb[0], fb[1]);
      mma<T>(c[2 * j + 1], a[k], fb[2], fb[3]);
    }
  }
}

/// C fragments of a [16,64], rounded to A fragments.
template <typename T>
__device__ void round_to_a(uint32_t (&a)[4][4], const float (&c)[8][4]) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    a[k][0] = pack<T>(c[2 * k][0], c[2 * k][1]);
    a[k][1] = pack<T>(c[2 * k][2], c[2 * k][3]);
    a[k][2] = pack<T>(c[2 * k + 1][0], c[2 * k + 1][1]);
    a[k][3] = pack<T>(c[2 * k + 1][2], c[2 * k + 1][3]);
  }
}

}  // namespace sigma::kernels
