// Full attention of short rows on the CPU in float32, straight from the packed projection: where
// batched small products and the copies around them cost more than the arithmetic.
#pragma once

#include <torch/types.h>

namespace sigma {

/// Whether short_attention() takes `qkv` [B,N,3C]: CPU, float32, N of at most 128.
bool takes_short_attention(const torch::Tensor& qkv);
/// qkv [B,N,3C], rows q, k, v, each head-major -> [B,N,C]; equals attention_reference() without a
/// mask. Differentiable once.
torch::Tensor short_attention(const torch::Tensor& qkv, int64_t num_heads);

}  // namespace sigma
