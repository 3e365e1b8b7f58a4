#include "sigma/moe/layer.h"

#include <torch/types.h>

#include <cmath>

#include "sigma/base/error.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr double kRouterStd = 0.006;  // arXiv 2401.06066, section 4.1.2

}  // namespace

int64_t MoeConfig::expert_width(int64_t dim) const {
  return static_cast<int64_t>(std::floor(static_cast<double>(dim) * expert_ratio));
}

int64_t MoeConfig::shared_width(int64_t dim) const {
  return shared_ratio > 0
             ? static_cast<int64_t>(std::floor(static_cast<double>(dim) * shared_ratio))
             : num_shared * expert_width(dim);
}

void MoeConfig::visit(ConfigVisitor& v) {
  v.field("num_experts", num_experts, in(1, 1024), "routed experts");
  v.field("num_chosen", num_chosen, in(1, 64),
          "token choice: routed experts a token uses; at most num_experts");
  v.field("num_shared", num_shared, in(0, 16), "experts that every token uses");
  v.field("expert_ratio", expert_ratio, above(0, 16),
          "width of one expert over the width of the model");
  v.field("shared_ratio", shared_ratio, in(0, 64),
          "width of the shared experts over that of the model; 0 = num_shared times expert_ratio");
  v.field("expert_bias", expert_bias, "biases in the experts");
  v.choice("expert_activation", expert_activation, {"swiglu", "gelu", "gelu_tanh"},
           "of the experts");
  v.choice("engine", engine, {"auto", "reference", "cpu", "grouped_mm"},
           "how the experts are computed");
  v.table("router", router, "which experts a token uses");
  v.table("balance", balance, "keeping the experts equally busy");
}

MixtureOfExperts::MixtureOfExperts(int64_t dim, const MoeConfig& config)
    : config_(config), hidden_(config.expert_width(dim)) {
  check_router(config.router, config.num_experts, config.num_chosen);
  SIGMA_CHECK(kUsage, hidden_ >= 1,
              "mlp.expert_ratio: expected an expert of at least one channel, got {} of {}",
              config.expert_ratio, dim);
  SIGMA_CHECK(kUsage, config.num_experts % config.balance.devices == 0,
              "mlp.balance.devices: expected a divisor of num_experts = {}, got {}",
              config.num_experts, config.balance.devices);
  const bool tokens_choose = config.router.kind == "token_choice";
  SIGMA_CHECK(kUsage, tokens_choose || config.balance.bias_rate == 0,
              "mlp.balance.bias_rate: expert choice is balanced by itself, expected 0, got {}",
              config.balance.bias_rate);
  const int64_t E = config.num_experts;
  const int64_t in_width = config.expert_activation == "swiglu" ? 2 * hidden_ : hidden_;
  const auto glorot = [](double in, double out) {
    return Init::uniform(std::sqrt(6.0 / (in + out)));
  };
  const auto C = static_cast<double>(dim);
  router_ = parameter("router", {E, dim}, Init::normal(kRouterStd));
  experts_.activation = config.expert_activation;
  experts_.w_in = parameter("w_in", {E, in_width, dim}, glorot(C, static_cast<double>(in_width)));
  experts_.w_out = parameter("w_out", {E, dim, hidden_}, glorot(static_cast<double>(hidden_), C));
  if (config.expert_bias) {
    experts_.b_in = parameter("b_in", {E, in_width}, Init::zero());
    experts_.b_out = parameter("b_out", {E, dim}, Init::zero());
  }
  const int64_t width = config.shared_width(dim);
  if (width > 0) {
    const int64_t factor = config.expert_activation == "swiglu" ? 2 : 1;
    shared_in_ = child<Linear>("shared_in", dim, factor * width, config.expert_bias);
    shared_out_ = child<Linear>("shared_out", width, dim, config.expert_bias);
  }
  if (config.balance.bias_rate > 0) {
    selection_bias_ = register_buffer("selection_bias", torch::zeros({E}));
    counts_ = register_buffer("counts", torch::zeros({E}));
  }
}

// With the first recorded pass of a new step, the bias moves by the counts of the step before.
void MixtureOfExperts::move_bias(const Context& context) {
  const torch::NoGradGuard no_grad;
  const auto step = static_cast<int64_t>(context.rng.step);
  if (step == counted_step_) return;
  selection_bias_.copy_(
      moved_bias(selection_bias_, counts_, config_.balance.bias_rate, config_.balance.bias_center));
  counts_.zero_();
  counted_step_ = step;
}

Tensor MixtureOfExperts::shared(const Tensor& tokens) const {
  return shared_out_->forward(
      expert_activation(shared_in_->forward(tokens), config_.expert_activation));
}

Output MixtureOfExperts::forward(const Tensor& x, const Context& context) {
  const int64_t E = config_.num_experts;
  SIGMA_CHECK(kUsage, x.dim() == 3 && x.size(2) == router_.size(1),
              "mixture of experts: expected tokens [B, N, {}], got [{}]", router_.size(1),
              fmt::join(x.sizes(), ", "));
  const int64_t images = x.size(0);
  const Tensor tokens = x.reshape({-1, x.size(-1)});  // [T, C]
  const int64_t T = tokens.size(0);
  const bool counts_here = context.record && context.training;
  if (selection_bias_.defined() && counts_here) move_bias(context);

  const Tensor logits = torch::linear(at_least_float(tokens), router_);
  routing_ = route(config_.router, config_.num_chosen, logits, selection_bias_, images);
  const Plan plan = make_plan(routing_.pair_token, routing_.pair_expert, T, E);
  Tensor y = run_experts(config_.engine, tokens, experts_, routing_.pair_weight, plan);
  if (shared_in_) y = y + shared(tokens);

  Output result{.value = y.view(x.sizes()), .losses = {}, .statistics = {}};
  const BalanceConfig& balance = config_.balance;
  const bool wants_losses = balance.expert > 0 || balance.device > 0;
  if (torch::GradMode::is_enabled() && wants_losses && routing_.pairs_a_token > 0) {
    const BalanceLosses losses = balance_losses(routing_, images, balance.scope == "sequence",
                                                config_.router.score == "sigmoid", balance.devices);
    if (balance.expert > 0) result.losses["moe.balance"] = balance.expert * losses.expert;
    if (balance.device > 0) result.losses["moe.device"] = balance.device * losses.device;
  }
  routing_.scores = routing_.scores.detach();
  routing_.pair_weight = routing_.pair_weight.detach();
  if (!context.record || T == 0) return result;
  const Tensor counts = plan.counts().to(routing_.scores.scalar_type());
  if (selection_bias_.defined() && counts_here) counts_.add_(counts.to(counts_.scalar_type()));
  const Tensor share = counts / counts.sum();
  result.statistics["moe.max_violation"] = counts.max() / counts.mean() - 1;
  result.statistics["moe.entropy"] =
      -torch::xlogy(share, share).sum() / std::max(std::log(static_cast<double>(E)), 1e-9);
  result.statistics["moe.empty_experts"] = (counts == 0).sum().to(counts.scalar_type());
  if (routing_.pairs_a_token == 0)
    result.statistics["moe.unrouted_tokens"] =
        (plan.token_offsets.diff() == 0).to(counts.scalar_type()).mean();
  return result;
}

double MixtureOfExperts::flops(int64_t tokens) const {
  const auto T = static_cast<double>(tokens);
  const bool gated = config_.expert_activation == "swiglu";
  const double expert = (gated ? 6.0 : 4.0) * static_cast<double>(router_.size(1) * hidden_);
  const double chosen = config_.router.kind == "token_choice"
                            ? static_cast<double>(config_.num_chosen)
                            : config_.router.capacity;
  const double shared = shared_in_ ? shared_in_->flops(T) + shared_out_->flops(T) : 0;
  return T * (expert * chosen + 2.0 * static_cast<double>(router_.numel())) + shared;
}

}  // namespace sigma
