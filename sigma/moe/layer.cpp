#include "sigma/moe/layer.h"

#include <torch/types.h>

#include <cmath>
#include <limits>

#include "sigma/base/error.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr double kRouterStd = 0.006;  // arXiv 2401.06066, section 4.1.2

Tensor gated(const Tensor& h) {
  const auto parts = h.chunk(2, -1);
  return torch::silu(parts[0]) * parts[1];
}

}  // namespace

void MoeConfig::visit(ConfigVisitor& v) {
  v.field("num_experts", num_experts, in(1, 1024), "routed experts");
  v.field("num_chosen", num_chosen, in(1, 64), "routed experts a token uses; at most num_experts");
  v.field("num_shared", num_shared, in(0, 16), "experts that every token uses");
  v.field("expert_ratio", expert_ratio, above(0, 16),
          "width of one expert over the width of the model");
  v.field("balance_weight", balance_weight, in(0, 10), "weight of the expert balance loss");
}

MixtureOfExperts::MixtureOfExperts(int64_t dim, const MoeConfig& config)
    : config_(config),
      hidden_(static_cast<int64_t>(std::floor(static_cast<double>(dim) * config.expert_ratio))) {
  SIGMA_CHECK(kUsage, config.num_chosen <= config.num_experts,
              "mlp.num_chosen: expected at most num_experts = {}, got {}", config.num_experts,
              config.num_chosen);
  SIGMA_CHECK(kUsage, hidden_ >= 1,
              "mlp.expert_ratio: expected an expert of at least one channel, got {} of {}",
              config.expert_ratio, dim);
  const int64_t E = config.num_experts;
  const auto glorot = [](double in, double out) {
    return Init::uniform(std::sqrt(6.0 / (in + out)));
  };
  const auto C = static_cast<double>(dim);
  const auto I = static_cast<double>(hidden_);
  router_ = parameter("router", {E, dim}, Init::normal(kRouterStd));
  w_in_ = parameter("w_in", {E, 2 * hidden_, dim}, glorot(C, 2 * I));
  w_out_ = parameter("w_out", {E, dim, hidden_}, glorot(I, C));
  if (config.num_shared > 0) {
    shared_in_ = child<Linear>("shared_in", dim, 2 * config.num_shared * hidden_, /*bias=*/false);
    shared_out_ = child<Linear>("shared_out", config.num_shared * hidden_, dim, /*bias=*/false);
  }
}

Output MixtureOfExperts::forward(const Tensor& x, const Context& context) {
  const int64_t E = config_.num_experts;
  const int64_t K = config_.num_chosen;
  const Tensor tokens = x.reshape({-1, x.size(-1)});  // [T, C]
  const int64_t T = tokens.size(0);
  const Tensor scores =
      torch::softmax(torch::linear(at_least_float(tokens), router_), -1);  // [T, E]
  // topk promises no order among ties: a stable sort does. NaN sorts as the smallest.
  const Tensor keys = scores.detach().nan_to_num(-std::numeric_limits<double>::infinity());
  const Tensor chosen =
      std::get<1>(torch::sort(keys, /*stable=*/true, -1, /*descending=*/true)).narrow(1, 0, K);

  Tensor y = shared_in_ ? shared_out_->forward(gated(shared_in_->forward(tokens)))
                        : torch::zeros_like(tokens);
  for (int64_t e = 0; e < E; ++e) {
    const Tensor rows = (chosen == e).any(1).nonzero().squeeze(1);
    if (rows.numel() == 0) continue;
    const Tensor h =
        gated(torch::linear(tokens.index_select(0, rows), w_in_[e].to(x.scalar_type())));
    const Tensor out = torch::linear(h, w_out_[e].to(x.scalar_type()));
    const Tensor weight = scores.index_select(0, rows).select(1, e).unsqueeze(1);
    y = y.index_add(0, rows, (out * weight).to(y.scalar_type()));
  }

  Output result{.value = y.view(x.sizes()), .losses = {}, .statistics = {}};
  if (T == 0) return result;
  const Tensor counts =
      torch::zeros({E}, scores.options())
          .index_add(0, chosen.reshape({-1}), torch::ones({T * K}, scores.options()));
  if (torch::GradMode::is_enabled() && config_.balance_weight > 0) {
    const Tensor f = counts * (static_cast<double>(E) / static_cast<double>(K * T));
    result.losses["moe.balance"] = config_.balance_weight * (f * scores.mean(0)).sum();
  }
  if (context.record) {
    result.statistics["moe.max_violation"] = counts.max() / counts.mean() - 1;
    result.statistics["moe.empty_experts"] = (counts == 0).sum().to(scores.scalar_type());
  }
  return result;
}

double MixtureOfExperts::flops(int64_t tokens) const {
  const auto T = static_cast<double>(tokens);
  const double expert = 6.0 * static_cast<double>(router_.size(1) * hidden_);
  return T * (expert * static_cast<double>(config_.num_chosen + config_.num_shared) +
              2.0 * static_cast<double>(router_.numel()));
}

}  // namespace sigma
