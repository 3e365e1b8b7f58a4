// Dense attention: softmax(scale q k^T) v over all tokens that the pattern allows ("Attention is
// all you need", arXiv 1706.03762).
//
// Shapes: q, k [B,H,N,D], v [B,H,N,Dv], out [B,H,N,Dv]; scale 1/sqrt(D), applied after the dot. Not
// supported here: fewer key/value heads than heads, masked keys.
#pragma once

#include <memory>

#include "sigma/nn/attention.h"
#include "sigma/nn/linear.h"

namespace sigma {

/// The definition. `causal`: token i sees tokens j <= i.
torch::Tensor attention_reference(const torch::Tensor& q, const torch::Tensor& k,
                                  const torch::Tensor& v, bool causal);

/// The same by the fastest path of torch for the device and size (matmul-softmax-matmul for short
/// rows on the CPU, else scaled_dot_product_attention).
torch::Tensor dense_attention(const torch::Tensor& q, const torch::Tensor& k,
                              const torch::Tensor& v, bool causal);

/// qkv projection (one matrix, rows q, k, v, each head-major), optional RMS norm of q and k, rotary
/// embedding, attention, output projection.
class DenseAttention : public Attention {
 public:
  DenseAttention(int64_t dim, int64_t num_heads, bool qk_norm, bool qkv_bias = true);
  torch::Tensor forward(const torch::Tensor& x, const TokenLayout& layout, const Rope* rope,
                        const Context& context) override;
  double flops(const TokenLayout& layout) const override;

 private:
  int64_t num_heads_;
  std::shared_ptr<Linear> qkv_;
  std::shared_ptr<Linear> proj_;
  std::shared_ptr<RmsNorm> q_norm_;
  std::shared_ptr<RmsNorm> k_norm_;
};

}  // namespace sigma
