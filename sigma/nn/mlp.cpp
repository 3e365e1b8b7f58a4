#include "sigma/nn/mlp.h"

#include <torch/types.h>

#include "sigma/base/error.h"

namespace sigma {

torch::Tensor activate(const torch::Tensor& x, const std::string& activation) {
  if (activation == "silu") return torch::silu(x);
  if (activation == "gelu") return torch::gelu(x);
  SIGMA_CHECK(kUsage, activation == "gelu_tanh",
              "activation: expected silu, gelu or gelu_tanh, got {}", activation);
  return torch::gelu(x, "tanh");
}

DenseMlp::DenseMlp(int64_t dim, int64_t hidden, std::string activation)
    : activation_(std::move(activation)),
      fc1_(child<Linear>("fc1", dim, hidden)),
      fc2_(child<Linear>("fc2", hidden, dim)) {}

Output DenseMlp::forward(const torch::Tensor& x, const Context&) {
  return {.value = fc2_->forward(activate(fc1_->forward(x), activation_)),
          .losses = {},
          .statistics = {}};
}

double DenseMlp::flops(int64_t tokens) const {
  return fc1_->flops(static_cast<double>(tokens)) + fc2_->flops(static_cast<double>(tokens));
}

}  // namespace sigma
