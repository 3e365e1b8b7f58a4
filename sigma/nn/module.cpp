#include "sigma/nn/module.h"

#include <torch/utils.h>

#include <cmath>

#include "sigma/base/error.h"
#include "sigma/base/random.h"
#include "sigma/base/sha256.h"

namespace sigma {
namespace {

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
