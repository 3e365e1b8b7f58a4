// 16 bytes of a row as floats. Device code.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace sigma::kernels {

__device__ inline float as_float(float x) { return x; }
__device__ inline float as_float(__half x) { return __half2float(x); }
__device__ inline float as_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void set_rounded(float& to, float x) { to = x; }
__device__ inline void set_rounded(__half& to, float x) { to = __float2half_rn(x); }
__device__ inline void set_rounded(__nv_bfloat16& to, float x) { to = __float2bfloat16_rn(x); }

template <typename T>
struct Unit {
  static constexpr int kSize = 16 / static_cast<int>(sizeof(T));
  float x[kSize];

  __device__ static Unit zero() {
    Unit out;
#pragma unroll
    for (int j = 0; j < kSize; ++j) out.x[j] = 0;
    return out;
  }
  __device__ static Unit load(const T* from) {
    const uint4 raw = *reinterpret_cast<const uint4*>(from);
    T values[kSize];
    memcpy(values, &raw, 16);
    Unit out;
#pragma unroll
    for (int j = 0; j < kSize; ++j) out.x[j] = as_float(values[j]);
    return out;
  }
  __device__ void store(T* to) const {
    T values[kSize];
#pragma unroll
    for (int j = 0; j < kSize; ++j) set_rounded(values[j], x[j]);
    uint4 raw;
    memcpy(&raw, values, 16);
    *reinterpret_cast<uint4*>(to) = raw;
  }
};

}  // namespace sigma::kernels
