// The attention slot of a block: what every kind of attention looks like from outside. A kind
// refuses, by name, the layouts that it cannot do.
#pragma once

#include "sigma/base/context.h"
#include "sigma/nn/module.h"
#include "sigma/nn/rope.h"
#include "sigma/nn/token_layout.h"

namespace sigma {

/// x [B, N, C] -> [B, N, C] in x's dtype. It never owns positions: `rope` is the trunk's, null
/// without rotary embeddings.
class Attention : public Module {
 public:
  virtual torch::Tensor forward(const torch::Tensor& x, const TokenLayout& layout, const Rope* rope,
                                const Context& context) = 0;
  /// Forward operations for one sample.
  virtual double flops(const TokenLayout& layout) const = 0;
};

}  // namespace sigma
