// torch's fused attention (scaled_dot_product_attention) for any number of images.
#pragma once

#include <torch/types.h>

#include <optional>

namespace sigma {

/// q [B,H,N,D], k [B,H,N',D], v [B,H,N',Dv]; `mask` bool [N,N'], true where a query may see a key,
/// or undefined; scale: 1/sqrt(D) if not given. On a GPU images run in pieces of fewer than 65,536
/// heads: torch's kernels have no more places on an axis of their grid.
torch::Tensor fused_attention(const torch::Tensor& q, const torch::Tensor& k,
                              const torch::Tensor& v, const torch::Tensor& mask = {},
                              bool causal = false, std::optional<double> scale = std::nullopt);

}  // namespace sigma
