// The elementwise part of an adaLN block: gated residual, LayerNorm without affine, modulation
// (DiT, arXiv 2212.09748, section 3.2).
//
//   h = x + gate a;   y = LN(h) (1 + scale) + shift
//
// x, a [B,N,C]; gate, shift, scale [B,C]. The reference is plain tensor code; on the CPU in float32
// one fused pass each way replaces about ten.
#pragma once

#include <torch/types.h>

namespace sigma {

struct GatedNorm {
  torch::Tensor h;  // the residual stream
  torch::Tensor y;  // normed and modulated, at least float32
};

/// The definition. `a` and `gate` undefined: h = x.
GatedNorm gated_norm_reference(const torch::Tensor& x, const torch::Tensor& a,
                               const torch::Tensor& gate, const torch::Tensor& shift,
                               const torch::Tensor& scale, double eps);
/// The same by the fastest path for device and dtype.
GatedNorm gated_norm(const torch::Tensor& x, const torch::Tensor& a, const torch::Tensor& gate,
                     const torch::Tensor& shift, const torch::Tensor& scale, double eps);

}  // namespace sigma
