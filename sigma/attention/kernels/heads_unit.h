// 16 bytes of a head as floats, and how a thread block divides heads. Device code.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace sigma::kernels {

// A thread block takes kBlockRows packed rows one after the other, 16 heads at once.
constexpr int kBlockRows = 16;
constexpr int kHeadThreads = 128;
constexpr int kHeadLanes = 8;  // of a head: 128 bytes of it at a time
constexpr int kHeadsAtOnce = kHeadThreads / kHeadLanes;

__device__ inline float as_float(float x) { return x; }
__device__ inline float as_float(__half x) { return __half2float(x); }
__device__ inline float as_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void round_to(float& to, float x) { to = x; }
__device__ inline void round_to(__half& to, float x) { to = __float2half_rn(x); }
__device__ inline void round_to(__nv_bfloat16& to, float x) { to = __float2bfloat16_rn(x); }

/// What the kernel does not write: loads may be reordered with its stores.
__device__ inline uint4 load_16(const void* from) { return __ldg(static_cast<const uint4*>(from)); }

/// The packed rows of thread block x: first .. end - 1 of sample b.
struct BlockRows {
  int64_t b, first, end;

  __device__ explicit BlockRows(int64_t N) {
    const int64_t blocks = (N + kBlockRows - 1) / kBlockRows;
    b = blockIdx.x / blocks;
    first = blockIdx.x % blocks * kBlockRows;
    end = min(first + kBlockRows, N);
  }
};
inline int64_t head_blocks(int64_t B, int64_t N) { return B * ((N + kBlockRows - 1) / kBlockRows); }

template <typename T>
struct Unit {
  static constexpr int kSize = 16 / static_cast<int>(sizeof(T));
  float x[kSize] = {};

  __device__ Unit() {}
  __device__ explicit Unit(const uint4& raw) {
    T values[kSize];
    memcpy(values, &raw, 16);
#pragma unroll
    for (int j = 0; j < kSize; ++j) x[j] = as_float(values[j]);
  }
  __device__ void add(const Unit& other, float factor = 1) {
#pragma unroll
    for (int j = 0; j < kSize; ++j) x[j] += factor * other.x[j];
  }
  __device__ void store(T* to) const {
    T values[kSize];
#pragma unroll
    for (int j = 0; j < kSize; ++j) round_to(values[j], x[j]);
    uint4 raw;
    memcpy(&raw, values, 16);
    *reinterpret_cast<uint4*>(to) = raw;
  }
};

}  // namespace sigma::kernels
