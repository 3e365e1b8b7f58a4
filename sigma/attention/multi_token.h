// Multi-token attention ("Multi-Token Attention", arXiv 2504.00927), on sequences and on 2-D and
// 3-D grids: attention whose scores see the scores of neighbouring queries, keys and other heads.
//
//   out = multi_token_op.h(q, k, v): convolution and head mixing before and after the softmax
//   n = norm(out) [(1 - lambda)],  y = n [sigmoid(w . n + b)],  then the output projection
//   lambda = .8 - .6 exp(-.3 layer)
//
// The norm is an RMS norm over a head's channels, one weight for all heads; gate and depth scale
// are the paper's second and first version. Kernels start as the identity (1 at step 0), mixes as
// the unit matrix: without norm and gate a fresh layer is dense attention. Queries of a kernel are
// centred steps, or past ones (causal sequences, the paper's). Refused by name: masked layouts,
// causal layouts with centred queries, causal grids.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "sigma/attention/multi_token_op.h"
#include "sigma/nn/attention.h"
#include "sigma/nn/linear.h"

namespace sigma {

struct MultiTokenConfig {
  std::string query_side = "centre";   // centre | past
  std::vector<int64_t> pre_kernel_q;   // sides on the grid's axes, before the softmax; empty: 3 an
  std::vector<int64_t> pre_kernel_k;   // axis; sequences 5 (past: 6) and 11
  std::vector<int64_t> post_kernel_q;  // after it
  std::vector<int64_t> post_kernel_k;
  bool pre_conv = true;
  bool post_conv = true;
  int64_t pre_heads = 1;  // that mix with each other
  int64_t post_heads = 2;
  bool norm = true;
  std::string gate = "scalar";  // scalar | none
  bool depth_scale = false;
  void visit(ConfigVisitor& v);
};

class MultiTokenAttention : public Attention {
 public:
  /// `layer`: from 0, for the depth scale. Errors: kUsage (sides and heads that do not fit, both
  /// printed).
  MultiTokenAttention(const MultiTokenConfig& config, int64_t dim, int64_t num_heads, bool qk_norm,
                      const Grid& grid, int64_t layer);
  torch::Tensor forward(const torch::Tensor& x, const TokenLayout& layout, const Rope* rope,
                        const Context& context) override;
  double flops(const TokenLayout& layout) const override;

  /// heads [B,H,N,D] after norm, depth scale and gate.
  torch::Tensor finish(const torch::Tensor& heads) const;
  /// Kernels and mixes, for looking.
  const ScoreMixing& before() const { return before_; }
  const ScoreMixing& after() const { return after_; }

 private:
  ScoreMixing mixing(const std::string& name, bool conv, const std::vector<int64_t>& q,
                     const std::vector<int64_t>& k, int64_t heads, int axes);

  MultiTokenConfig config_;
  int64_t num_heads_;
  int64_t head_dim_;
  double depth_factor_;
  std::shared_ptr<Linear> qkv_, gate_, proj_;
  std::shared_ptr<RmsNorm> q_norm_, k_norm_, norm_;
  ScoreMixing before_, after_;
};

}  // namespace sigma
