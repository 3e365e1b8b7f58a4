#include "sigma/moe/kernels/combine.h"

#include "sigma/base/simd.h"

namespace sigma::kernels {

SIGMA_MULTIVERSION void combine_rows(const float* rows, int64_t first_row, int64_t last_row,
                                     const float* weight, const int32_t* offsets,
                                     const int32_t* token_rows, int64_t width, int64_t first,
                                     int64_t last, float* out) {
  for (int64_t t = first; t < last; ++t) {
    float* __restrict__ y = out + t * width;
    for (int32_t i = offsets[t]; i < offsets[t + 1]; ++i) {
      const int64_t r = token_rows[i];
      if (r < first_row || r >= last_row) continue;
      const float* __restrict__ row = rows + (r - first_row) * width;
      const float w = weight[r];
      for (int64_t c = 0; c < width; ++c) y[c] += w * row[c];
    }
  }
}

}  // namespace sigma::kernels
