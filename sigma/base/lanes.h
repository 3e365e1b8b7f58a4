// Vectors of 16 floats for kernels that SIGMA_MULTIVERSION compiles once an instruction set: the
// compiler makes one AVX-512 register of each, two of AVX2, four of SSE. Torch-free.
#pragma once

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

}  // namespace sigma::kernels
