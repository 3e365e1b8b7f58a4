// Vectors of 16 floats for kernels that SIGMA_MULTIVERSION compiles once an instruction set: the
// compiler makes one AVX-512 register of each, two of AVX2, four of SSE. Torch-free.
#pragma once

#include <bit>
#include <cstdint>

#pragma STDC FP_CONTRACT ON
// Vectors are passed between inlined functions only: no call has an ABI.
#pragma GCC diagnostic ignored "-Wpsabi"

#define SIGMA_INLINED __attribute__((always_inline))
#define SIGMA_INLINE inline SIGMA_INLINED

namespace sigma::kernels {

constexpr int64_t kLanes = 16;

typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t LanesInt __attribute__((vector_size(kLanes * sizeof(float))));
typedef Lanes LanesInMemory __attribute__((aligned(4)));

/// n up to the next multiple of kLanes.
inline int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

SIGMA_INLINE Lanes load_lanes(const float* p) { return *reinterpret_cast<const LanesInMemory*>(p); }
SIGMA_INLINE void store_lanes(float* p, Lanes x) { *reinterpret_cast<LanesInMemory*>(p) = x; }
SIGMA_INLINE void add_lanes(float* to, Lanes x) { store_lanes(to, load_lanes(to) + x); }

/// exp(x) to about 1 ulp; 0 below -87.
SIGMA_INLINE Lanes exp_lanes(Lanes x) {
  const Lanes low = Lanes{} - 87.0f;
  const Lanes high = Lanes{} + 88.0f;
  const Lanes bounded = x < low ? low : x > high ? high : x;
  // x = n log 2 + r, |r| <= log(2) / 2; adding 1.5 * 2^23 rounds to a whole number.
  const Lanes shifted = bounded * 1.44269504f + 12582912.0f;
  const Lanes n = shifted - 12582912.0f;
  const Lanes r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  Lanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const LanesInt power = (std::bit_cast<LanesInt>(shifted) - 0x4B400000 + 127) << 23;
  return x < low ? Lanes{} : p * std::bit_cast<Lanes>(power);
}

}  // namespace sigma::kernels
