// The gated activation of a panel of rows (panels.h), one pass each way. Torch-free.
//
//   Z = (a, b) [2I, lanes], A = silu(a) b;  backward of dA [I, lanes], a column's weight g:
//   da = g dA b s (1 + a (1 - s)), db = g dA silu(a), s = 1 / (1 + e^-a)
#pragma once

#include <cstdint>

namespace sigma::kernels {

void swiglu_panel(const float* z, int64_t I, int64_t lanes, float* A);

/// dz [2I, lanes], weighted = g A, dot [lanes] = sum of dA A over a column.
void swiglu_panel_backward(const float* z, const float* dA, const float* g, int64_t I,
                           int64_t lanes, float* dz, float* weighted, float* dot);

}  // namespace sigma::kernels
