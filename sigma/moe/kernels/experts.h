// Device side of sigma/moe/experts_grouped.cpp: everything around the grouped products, in bfloat16
// with sums in float32. Torch-free; exists only in builds with CUDA.
//
// Rows are those of a plan (sigma/moe/plan.h), the first offsets[E] of them used; what lies past
// those is neither read nor written. All pointers are on the device, `stream` is a cudaStream_t;
// widths are multiples of 8. False: the launch failed.
#pragma once

#include <cstdint>

namespace sigma::kernels {

enum class ExpertActivation { kSwiglu, kGelu, kGeluTanh };

/// The plan and the experts' sizes.
struct ExpertRows {
  const int32_t* offsets;        // [E+1]
  const int32_t* row_token;      // [R]
  const int32_t* row_pair;       // [R]
  const int32_t* token_offsets;  // [T+1]
  const int32_t* token_rows;     // [R]
  int64_t E, R, T;
  void* stream;
};

/// out[r] = x[row_token[r]], x [T, width].
bool gather_rows(const ExpertRows& rows, const void* x, int64_t width, void* out);
/// z [R, 2I or I] += b_in[e] (null: none), a [R,I] = phi(z).
bool activate_rows(const ExpertRows& rows, ExpertActivation phi, void* z, const void* b_in,
                   int64_t I, void* a);
/// From da = W_out^T G [R,I] and z:  d_pair[row_pair] = da . a + G . b_out (null: none),
/// ga = g a [R,I], dz = phi'(z) g da.
bool activate_rows_backward(const ExpertRows& rows, ExpertActivation phi, const void* z,
                            const void* da, const float* pair_weight, const void* G,
                            const void* b_out, int64_t I, int64_t C, void* dz, void* ga,
                            float* d_pair);
/// out[t] = sum over the rows of t, in order, of g (y[row] + b_out[e]); pair_weight null: g = 1,
/// b_out null: none. out [T, width].
bool combine_rows_cuda(const ExpertRows& rows, const void* y, const float* pair_weight,
                       const void* b_out, int64_t width, void* out);
/// out[e] = sum over the rows of e of g v[row], [E, width]; pair_weight null: g = 1.
bool sum_rows(const ExpertRows& rows, const void* v, const float* pair_weight, int64_t width,
              void* out);
/// weights[e] = 0 for experts without rows, `size` elements each.
bool zero_unused(const ExpertRows& rows, int64_t size, void* weights);

}  // namespace sigma::kernels
