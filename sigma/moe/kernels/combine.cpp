#include "sigma/moe/kernels/combine.h"

#include <algorithm>

#include "sigma/base/simd.h"

namespace sigma::kernels {

SIGMA_MULTIVERSION void combine_rows(const float* rows, const float* weight, const int32_t* offsets,
                                     const int32_t* token_rows, int64_t width, int64_t first,
                                     int64_t last, float* out) {
  for (int64_t t = first; t < last; ++t) {
    float* __restrict__ y = out + t * width;
    std::fill(y, y + width, 0.0f);
    for (int32_t i = offsets[t]; i < offsets[t + 1]; ++i) {
      const float* __restrict__ row = rows + static_cast<int64_t>(token_rows[i]) * width;
      const float w = weight[token_rows[i]];
      for (int64_t c = 0; c < width; ++c) y[c] += w * row[c];
    }
  }
}

}  // namespace sigma::kernels
