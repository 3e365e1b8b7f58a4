#include "sigma/nn/linear.h"

#include <torch/types.h>

namespace sigma {

using torch::Tensor;

Linear::Linear(int64_t in, int64_t out, bool bias, Init weight, Init bias_init)
    : weight_(parameter("weight", {out, in}, weight)),
      bias_(bias ? parameter("bias", {out}, bias_init) : Tensor()) {}

Tensor Linear::forward(const Tensor& x) const {
  const auto dtype = x.scalar_type();
  return torch::linear(x, weight_.to(dtype), bias_.defined() ? bias_.to(dtype) : bias_);
}

LayerNorm::LayerNorm(int64_t dim, double eps)
    : dim_(dim),
      eps_(eps),
      weight_(parameter("weight", {dim}, Init::one())),
      bias_(parameter("bias", {dim}, Init::zero())) {}

Tensor LayerNorm::forward(const Tensor& x) const {
  return torch::layer_norm(at_least_float(x), {dim_}, weight_, bias_, eps_);
}

RmsNorm::RmsNorm(int64_t dim, double eps)
    : eps_(eps), weight_(parameter("weight", {dim}, Init::one())) {}

Tensor RmsNorm::forward(const Tensor& x) const {
  const Tensor wide = at_least_float(x);
  const Tensor scale = torch::rsqrt(wide.square().mean(-1, /*keepdim=*/true) + eps_);
  return (wide * scale * weight_).to(x.scalar_type());
}

Tensor at_least_float(const Tensor& x) {
  const bool narrow = x.scalar_type() == torch::kBFloat16 || x.scalar_type() == torch::kHalf;
  return narrow ? x.to(torch::kFloat) : x;
}

Tensor to_compute(const Tensor& x, const Context& context) {
  return x.scalar_type() == torch::kDouble ? x : x.to(context.dtype);
}

}  // namespace sigma
