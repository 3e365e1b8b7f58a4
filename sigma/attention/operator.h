// What the operators of attention share.
#pragma once

#include <torch/types.h>

#include <cmath>
#include <cstdint>

#include "sigma/attention/kernels/small_gemm.h"

namespace sigma {

struct AttentionOutput {
  torch::Tensor out;  // [B,H,Nq,Dv]
  torch::Tensor lse;  // [B,H,Nq] natural log; has no gradient
};

/// x [B,G,N,D] with zeros in the rows that key_valid [B,N] (or nothing) leaves out: they may hold
/// NaN, which 0 times would keep.
inline torch::Tensor without_invalid(const torch::Tensor& x, const torch::Tensor& key_valid) {
  if (!key_valid.defined()) return x;
  return x.masked_fill(key_valid.logical_not().unsqueeze(1).unsqueeze(-1), 0);
}

/// Zero columns up to `width` change no dot product.
inline torch::Tensor pad_columns(const torch::Tensor& x, int64_t width) {
  return x.size(3) == width ? x : torch::constant_pad_nd(x, {0, width - x.size(3)});
}
/// Up to the multiple of the CPU's kernels.
inline torch::Tensor pad_columns(const torch::Tensor& x) {
  return pad_columns(x, kernels::padded(x.size(3)));
}

/// The first `count` along an axis: no slice of everything, whose gradient would be a copy.
inline torch::Tensor first_of(const torch::Tensor& x, int64_t axis, int64_t count) {
  return count == x.size(axis) ? x : x.slice(axis, 0, count);
}

/// The factor on scores q . k: `asked`, or 1/sqrt(D) of q [B,H,N,D] where that is 0.
inline double score_scale(double asked, const torch::Tensor& q) {
  return asked != 0 ? asked : 1 / std::sqrt(static_cast<double>(q.size(3)));
}

}  // namespace sigma
