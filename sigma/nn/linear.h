// Linear maps and norms: layer norm (arXiv 1607.06450), RMS norm (arXiv 1910.07467). Weights are
// float32; norms are computed in at least float32. Initial weights: sigma/nn/module.h.
#pragma once

#include "sigma/base/context.h"
#include "sigma/nn/module.h"

namespace sigma {

/// y = x W^T + b, W [out, in]. The float32 weights are cast to x's dtype (bfloat16 on a GPU).
class Linear : public Module {
 public:
  Linear(int64_t in, int64_t out, bool bias = true, Init weight = Init::xavier(),
         Init bias_init = Init::zero());
  torch::Tensor forward(const torch::Tensor& x) const;
  /// maps[0](x), maps[1](x), ... side by side, by one product; all maps with biases. Zero columns
  /// follow up to a multiple of 8: rows then start at multiples of 16 bytes.
  static torch::Tensor side_by_side(const std::vector<std::shared_ptr<Linear>>& maps,
                                    const torch::Tensor& x);
  const torch::Tensor& weight() const { return weight_; }
  const torch::Tensor& bias() const { return bias_; }
  int64_t in_features() const { return weight_.size(1); }
  int64_t out_features() const { return weight_.size(0); }
  /// Forward operations for `rows` rows.
  double flops(double rows) const { return 2.0 * rows * static_cast<double>(weight_.numel()); }

 private:
  torch::Tensor weight_;
  torch::Tensor bias_;
};

/// (x - mean) / sqrt(var + eps) over the last axis, times weight plus bias. Computed and returned
/// in at least float32.
class LayerNorm : public Module {
 public:
  explicit LayerNorm(int64_t dim, double eps = 1e-6);
  torch::Tensor forward(const torch::Tensor& x) const;

 private:
  int64_t dim_;
  double eps_;
  torch::Tensor weight_;
  torch::Tensor bias_;
};

/// x / sqrt(mean(x^2) + eps) times weight over the last axis, in at least float32, returned in x's
/// dtype.
class RmsNorm : public Module {
 public:
  explicit RmsNorm(int64_t dim, double eps = 1e-6);
  torch::Tensor forward(const torch::Tensor& x) const;

 private:
  double eps_;
  torch::Tensor weight_;
};

/// x in at least float32: where norms, softmax, routing and losses are computed.
torch::Tensor at_least_float(const torch::Tensor& x);
/// x in the compute dtype of the pass; float64 stays float64.
torch::Tensor to_compute(const torch::Tensor& x, const Context& context);

}  // namespace sigma
