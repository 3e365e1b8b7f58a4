#include "sigma/moe/experts.h"

#include <torch/types.h>

#include <mutex>

#include "sigma/base/error.h"
#include "sigma/base/progress.h"
#include "sigma/moe/experts_grouped.h"
#include "sigma/nn/mlp.h"

namespace sigma {

using torch::Tensor;

Tensor expert_activation(const Tensor& Z, const std::string& activation, int64_t dim) {
  if (activation != "swiglu") return activate(Z, activation);
  const auto parts = Z.chunk(2, dim);
  return torch::silu(parts[0]) * parts[1];
}

void refuse_second_derivative(const char* engine) {
  SIGMA_CHECK(kUsage, !torch::GradMode::is_enabled(),
              "mlp.engine: {} has no second derivative; set reference", engine);
}

Tensor experts_reference(const Tensor& x, const Experts& experts, const Tensor& pair_weight,
                         const Plan& plan) {
  const auto dtype = x.scalar_type();
  const Tensor offsets = plan.offsets.cpu();
  const int64_t E = experts.w_in.size(0);
  Tensor y = torch::zeros_like(x, pair_weight.options());
  for (int64_t e = 0; e < E; ++e) {
    const auto first = offsets[e].item<int64_t>();
    const auto last = offsets[e + 1].item<int64_t>();
    if (first == last) continue;
    const Tensor tokens = plan.row_token.slice(0, first, last).to(torch::kInt64);
    const Tensor pairs = plan.row_pair.slice(0, first, last).to(torch::kInt64);
    const auto biased = [&](const Tensor& in, const Tensor& w, const Tensor& b) {
      return torch::linear(in, w[e].to(dtype),
                           b.defined() ? std::optional<Tensor>(b[e].to(dtype)) : std::nullopt);
    };
    const Tensor Z = biased(x.index_select(0, tokens), experts.w_in, experts.b_in);
    const Tensor Y = biased(expert_activation(Z, experts.activation), experts.w_out, experts.b_out);
    y = y.index_add(0, tokens, Y * pair_weight.index_select(0, pairs).unsqueeze(1));
  }
  return y.to(dtype);
}

namespace {

// auto had to take the loop; float64 is there to check others, and asks for it.
void say_once(const std::string& why) {
  static std::once_flag said;
  std::call_once(said, [&] {
    print_note("note: the mixture of experts runs as a loop over experts: " + why);
  });
}

}  // namespace

Tensor run_experts(const std::string& engine, const Tensor& x, const Experts& experts,
                   const Tensor& pair_weight, const Plan& plan) {
  const auto dtype = x.scalar_type();
  const std::string cpu_refuses =
      x.is_cpu() && dtype == torch::kFloat && experts.w_in.scalar_type() == torch::kFloat
          ? ""
          : fmt::format("expected float32 on the CPU, got {} on {}", torch::toString(dtype),
                        x.device().str());
  SIGMA_CHECK(kUsage, engine != "cpu" || cpu_refuses.empty(), "mlp.engine: cpu: {}", cpu_refuses);
  if (engine == "cpu" || (engine == "auto" && cpu_refuses.empty()))
    return experts_cpu(x, experts, pair_weight, plan);
  if (engine == "grouped_mm" || (engine == "auto" && x.is_cuda())) {
    const std::string refusal = grouped_refuses(x, experts);
    if (refusal.empty()) return experts_grouped(x, experts, pair_weight, plan);
    SIGMA_CHECK(kUsage, engine == "auto", "mlp.engine: grouped_mm: {}", refusal);
    if (dtype != torch::kDouble) say_once("grouped_mm: " + refusal);
  } else if (engine == "auto" && dtype != torch::kDouble) {
    say_once("cpu: " + cpu_refuses);
  }
  return experts_reference(x, experts, pair_weight, plan);
}

}  // namespace sigma
