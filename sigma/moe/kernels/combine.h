// Sums of the rows of every token. Torch-free.
#pragma once

#include <cstdint>

namespace sigma::kernels {

/// out[t] += sum_i weight[r_i] rows[r_i - first_row] over those r_i = token_rows[offsets[t] ..
/// offsets[t + 1]), in order, that are in [first_row, last_row), for t in [first, last); rows and out
/// have `width` columns.
void combine_rows(const float* rows, int64_t first_row, int64_t last_row, const float* weight,
                  const int32_t* offsets, const int32_t* token_rows, int64_t width, int64_t first,
                  int64_t last, float* out);

}  // namespace sigma::kernels
