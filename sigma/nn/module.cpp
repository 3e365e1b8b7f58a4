#include "sigma/nn/module.h"

#include <torch/utils.h>

#include <cmath>

#include "sigma/base/error.h"
#include "sigma/base/random.h"
#include "sigma/base/sha256.h"

namespace sigma {
namespace {

// [fx | fy] from one angle phi in [0, 2 pi) a layer and head:
// fx = [g cos phi | -g sin phi], fy = [g sin phi | g cos phi], g_i = theta^(-4i/D), i < D/4.
torch::Tensor rotary_frequencies(const torch::Tensor& phi, double theta, int64_t pairs) {
  const torch::Tensor g = torch::pow(
      theta, torch::arange(pairs / 2, torch::kDouble) * (-2.0 / static_cast<double>(pairs)));
  const torch::Tensor c = phi.cos().unsqueeze(-1) * g, s = phi.sin().unsqueeze(-1) * g;
  return torch::stack({torch::cat({c, -s}, -1), torch::cat({s, c}, -1)});
}

void fill(torch::Tensor parameter, const Init& init, uint64_t seed, const std::string& name) {
  if (init.kind == Init::Kind::kConstant) {
    parameter.fill_(init.scale);
    return;
  }
  if (init.kind == Init::Kind::kImpulse) {
    parameter.zero_().flatten(1).select(1, static_cast<int64_t>(init.scale)).fill_(1);
    return;
  }
  if (init.kind == Init::Kind::kIdentity) {
    parameter.copy_(torch::eye(parameter.size(-1)).expand_as(parameter));
    return;
  }
  // Drawn on the CPU in float32, then copied: the same weights on every device.
  torch::Tensor values = torch::empty(parameter.sizes(), torch::kFloat);
  const uint32_t stream = random_stream(Purpose::kInit, 0);
  const uint64_t key = sha256_u64(name);
  if (init.kind == Init::Kind::kRotary) {
    torch::Tensor turn = torch::empty({parameter.size(1), parameter.size(2)}, torch::kDouble);
    fill_uniform_keyed(turn, seed, stream, key);
    parameter.copy_(rotary_frequencies(turn * (2 * M_PI), init.scale, parameter.size(3)));
    return;
  }
  if (init.kind == Init::Kind::kNormal) {
    fill_normal_keyed(values, seed, stream, key);
    values.mul_(init.scale);
  } else {
    double half_width = init.scale;
    if (init.kind == Init::Kind::kXavier) {
      const auto rows = static_cast<double>(parameter.size(0));
      half_width = std::sqrt(6.0 / (rows + static_cast<double>(parameter.numel()) / rows));
    }
    fill_uniform_keyed(values, seed, stream, key);
    values.mul_(2 * half_width).sub_(half_width);
  }
  parameter.copy_(values);
}

}  // namespace

torch::Tensor Module::parameter(const std::string& name, torch::IntArrayRef shape, Init init) {
  rules_[name] = init;
  return register_parameter(name, torch::empty(shape, torch::kFloat));
}

void initialize(torch::nn::Module& root, uint64_t seed) {
  const torch::NoGradGuard no_grad;
  const auto visit = [seed](const torch::nn::Module& module, const std::string& prefix) {
    const auto* own = dynamic_cast<const Module*>(&module);
    for (const auto& parameter : module.named_parameters(/*recurse=*/false)) {
      const std::string name = prefix + parameter.key();
      SIGMA_CHECK(kFailure, own && own->init_rules().contains(parameter.key()),
                  "initialize: no rule for parameter {}", name);
      fill(parameter.value(), own->init_rules().at(parameter.key()), seed, name);
    }
  };
  visit(root, "");
  for (const auto& item : root.named_modules("", /*include_self=*/false))
    visit(*item.value(), item.key() + ".");
}

}  // namespace sigma
