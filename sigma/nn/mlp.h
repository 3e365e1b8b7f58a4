// The mlp slot of a block, and its dense kind. A mixture of experts (sigma/moe/layer.h) looks the
// same from outside.
#pragma once

#include <memory>
#include <string>

#include "sigma/base/context.h"
#include "sigma/nn/linear.h"
#include "sigma/nn/output.h"

namespace sigma {

/// x [B, N, C] -> the same shape, with named losses and statistics.
class Mlp : public Module {
 public:
  virtual Output forward(const torch::Tensor& x, const Context& context) = 0;
  /// Forward operations for `tokens` tokens.
  virtual double flops(int64_t tokens) const = 0;
};

/// silu, gelu (erf) or gelu_tanh. Errors: kUsage.
torch::Tensor activate(const torch::Tensor& x, const std::string& activation);

/// fc2(activation(fc1(x))); geglu: fc2(gelu(a) b), [a | b] = fc1(x) (arXiv 2002.05202).
class DenseMlp : public Mlp {
 public:
  DenseMlp(int64_t dim, int64_t hidden, std::string activation);
  Output forward(const torch::Tensor& x, const Context& context) override;
  double flops(int64_t tokens) const override;

 private:
  std::string activation_;
  std::shared_ptr<Linear> fc1_;
  std::shared_ptr<Linear> fc2_;
};

}  // namespace sigma
