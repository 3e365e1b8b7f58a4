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

void check_shape(const char* name, const Tensor& t, torch::IntArrayRef expected) {
  SIGMA_CHECK(kUsage, t.sizes() == expected, "experts: {}: expected [{}], got [{}]", name,
              fmt::join(expected, ","), fmt::join(t.sizes(), ","));
}

// The engines read memory by these sizes.
void check_shapes(const Tensor& x, const Experts& experts, const Tensor& pair_weight,
                  const Plan& plan) {
  SIGMA_CHECK(kUsage, x.dim() == 2 && experts.w_in.dim() == 3 && experts.w_out.dim() == 3,
              "experts: expected x [T,C], w_in [E,2I or I,C] and w_out [E,C,I], got {}, {} and {} "
              "dimensions",
              x.dim(), experts.w_in.dim(), experts.w_out.dim());
  const int64_t T = x.size(0), C = x.size(1), E = experts.w_in.size(0), I = experts.w_out.size(2);
  const int64_t wide = experts.activation == "swiglu" ? 2 * I : I;
  check_shape("w_in", experts.w_in, {E, wide, C});
  check_shape("w_out", experts.w_out, {E, C, I});
  if (experts.b_in.defined()) check_shape("b_in", experts.b_in, {E, wide});
  if (experts.b_out.defined()) check_shape("b_out", experts.b_out, {E, C});
  check_shape("pair_weight", pair_weight, plan.row_pair.sizes());
  check_shape("the plan's offsets", plan.offsets, {E + 1});
  check_shape("the plan's token_offsets", plan.token_offsets, {T + 1});
}

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
  check_shapes(x, experts, pair_weight, plan);
  const auto dtype = x.scalar_type();
  std::string cpu_refuses;
  for (const Tensor& t : {x, experts.w_in, experts.w_out, experts.b_in, experts.b_out, pair_weight})
    if (t.defined() && (!t.is_cpu() || t.scalar_type() != torch::kFloat))
      cpu_refuses = fmt::format("expected float32 on the CPU, got {} on {}",
                                torch::toString(t.scalar_type()), t.device().str());
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
