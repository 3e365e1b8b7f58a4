// Device side of a router's choice. Torch-free; exists only in builds with CUDA.
#pragma once

#include <cstdint>

namespace sigma::kernels {

/// For each of `count` rows r [E] the places of its K largest values, best first, ties to the lower
/// place, out int64 [count, K]. E up to 1024; no NaN.
bool top_k_rows(const float* r, int64_t count, int64_t E, int64_t K, int64_t* out, void* stream);

}  // namespace sigma::kernels
