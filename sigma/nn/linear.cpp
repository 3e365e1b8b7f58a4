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

Tensor Linear::side_by_side(const std::vector<std::shared_ptr<Linear>>& maps, const Tensor& x) {
  std::vector<Tensor> weights, biases;
  int64_t columns = 0;
  for (const auto& map : maps) {
    weights.push_back(map->weight_);
    biases.push_back(map->bias_);
    columns += map->out_features();
  }
  if (const int64_t missing = (8 - columns % 8) % 8; missing > 0) {
    weights.push_back(torch::zeros({missing, x.size(-1)}, weights[0].options()));
    biases.push_back(torch::zeros({missing}, biases[0].options()));
  }
  const auto dtype = x.scalar_type();
  return torch::linear(x, torch::cat(weights).to(dtype), torch::cat(biases).to(dtype));
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
