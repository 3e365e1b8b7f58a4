#include "sigma/attention/dense.h"

#include <torch/types.h>

#include <cmath>

#include "sigma/attention/fused_attention.h"
#include "sigma/attention/short_attention.h"
#include "sigma/base/error.h"

namespace sigma {
namespace {

using torch::Tensor;

// Below this many tokens the CPU's fused attention is slower than three plain operations.
constexpr int64_t kShortRow = 256;

}  // namespace

Tensor attention_reference(const Tensor& q, const Tensor& k, const Tensor& v, bool causal) {
  const double scale = 1 / std::sqrt(static_cast<double>(q.size(-1)));
  Tensor scores = torch::matmul(q, k.transpose(-2, -1)) * scale;
  if (causal) {
    const Tensor hidden =
        torch::ones({q.size(-2), k.size(-2)}, q.options().dtype(torch::kBool)).triu(1);
    scores = scores.masked_fill(hidden, -std::numeric_limits<double>::infinity());
  }
  const auto wide = q.scalar_type() == torch::kDouble ? torch::kDouble : torch::kFloat;
  return torch::matmul(torch::softmax(scores, -1, wide).to(v.scalar_type()), v);
}

Tensor dense_attention(const Tensor& q, const Tensor& k, const Tensor& v, bool causal) {
  if (q.is_cpu() && q.size(-2) < kShortRow) return attention_reference(q, k, v, causal);
  return fused_attention(q, k, v, /*mask=*/{}, causal);
}

DenseAttention::DenseAttention(int64_t dim, int64_t num_heads, bool qk_norm, bool qkv_bias)
    : num_heads_(num_heads),
      qkv_(child<Linear>("qkv", dim, 3 * dim, qkv_bias)),
      proj_(child<Linear>("proj", dim, dim)) {
  SIGMA_CHECK(kUsage, num_heads >= 1 && dim % num_heads == 0,
              "num_heads: expected a divisor of hidden_size = {}, got {}", dim, num_heads);
  if (qk_norm) {
    q_norm_ = child<RmsNorm>("q_norm", dim / num_heads);
    k_norm_ = child<RmsNorm>("k_norm", dim / num_heads);
  }
}

Tensor DenseAttention::forward(const Tensor& x, const TokenLayout& layout, const Rope* rope,
                               const Context&) {
  const int64_t B = x.size(0);
  const int64_t N = x.size(1);
  SIGMA_CHECK(kUsage, N == layout.tokens(), "attention: expected {} tokens, got {}",
              layout.tokens(), N);
  const Tensor qkv = qkv_->forward(x);
  const bool packed = layout.pattern == Pattern::kFull && takes_short_attention(qkv);
  if (packed && !q_norm_ && !rope) return proj_->forward(short_attention(qkv, num_heads_));
  const int64_t head_dim = proj_->in_features() / num_heads_;  // not -1: the batch may be empty
  const auto parts = qkv.view({B, N, 3, num_heads_, head_dim}).permute({2, 0, 3, 1, 4}).unbind(0);
  Tensor q = parts[0];
  Tensor k = parts[1];
  const Tensor v = parts[2];
  if (q_norm_) {
    q = q_norm_->forward(q);
    k = k_norm_->forward(k);
  }
  if (rope) {
    q = rope->rotate(q, rope->table());
    k = rope->rotate(k, rope->table());
  }
  if (packed) {
    const Tensor turned =
        torch::stack({q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)}, 2);
    return proj_->forward(short_attention(turned.view(qkv.sizes()), num_heads_));
  }
  Tensor out;
  if (layout.pattern == Pattern::kCausalAfter) {
    // Before and grid tokens see each other; the latents see these and, causally, themselves.
    const int64_t seen = N - layout.after;
    const Tensor head =
        dense_attention(q.narrow(2, 0, seen), k.narrow(2, 0, seen), v.narrow(2, 0, seen), false);
    const Tensor order = torch::arange(N, x.options().dtype(torch::kInt64));
    const Tensor allowed = order.unsqueeze(0) <= order.narrow(0, seen, layout.after).unsqueeze(1);
    const Tensor tail = fused_attention(q.narrow(2, seen, layout.after), k, v, allowed);
    out = torch::cat({head, tail}, 2);
  } else {
    out = dense_attention(q, k, v, layout.pattern == Pattern::kCausal);
  }
  return proj_->forward(out.transpose(1, 2).reshape({B, N, proj_->in_features()}));
}

double DenseAttention::flops(const TokenLayout& layout) const {
  const auto N = static_cast<double>(layout.tokens());
  const auto dim = static_cast<double>(proj_->in_features());
  return qkv_->flops(N) + proj_->flops(N) + 4 * N * N * dim;
}

}  // namespace sigma
