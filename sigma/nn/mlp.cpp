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
      fc1_(child<Linear>("fc1", dim, activation_ == "geglu" ? 2 * hidden : hidden)),
      fc2_(child<Linear>("fc2", hidden, dim)) {}

Output DenseMlp::forward(const torch::Tensor& x, const Context&) {
  torch::Tensor h = fc1_->forward(x);
  if (activation_ == "geglu") {
    const auto parts = h.chunk(2, -1);
    h = torch::gelu(parts[0]) * parts[1];
  } else {
    h = activate(h, activation_);
  }
  return {.value = fc2_->forward(h), .losses = {}, .statistics = {}};
}

double DenseMlp::flops(int64_t tokens) const {
  return fc1_->flops(static_cast<double>(tokens)) + fc2_->flops(static_cast<double>(tokens));
}

}  // namespace sigma
