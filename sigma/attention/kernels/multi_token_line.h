// The convolutions of multi_token_conv.h on a sequence, by matrix instructions (multi_token_line.cu).
#pragma once

#include "sigma/attention/kernels/multi_token_conv.h"

namespace sigma::kernels {

constexpr int kTapsPart = 64;  // tokens of a part of the gradient of w, of either kernel

// 16-bit elements, D 64, up to 8 query steps, up to 17 neighbouring key steps with 0 within reach.
bool takes_line(const WideConvolution& c);
cudaError_t line_convolve(const WideConvolution& c, cudaStream_t stream);
cudaError_t line_convolve_back(const WideConvolution& c, cudaStream_t stream);

// Where wide[head, r, n] lies.
__host__ __device__ inline int64_t wide_at(const WideConvolution& c, int64_t head, int r, int n) {
  const int64_t N = c.grid.tokens();
  return (c.by_token ? (head * N + n) * c.R + r : (head * c.R + r) * N + n) * c.D;
}

}  // namespace sigma::kernels
