#include "sigma/moe/balance.h"

#include <torch/types.h>

namespace sigma {

using torch::Tensor;

void BalanceConfig::visit(ConfigVisitor& v) {
  v.field("expert", expert, in(0, 10), "weight of the expert loss (token choice)");
  v.field("device", device, in(0, 10), "weight of the device loss (token choice)");
  v.field("devices", devices, in(1, 1024), "groups of experts of the device loss");
  v.choice("scope", scope, {"batch", "sequence"}, "losses over all tokens, or image by image");
  v.field("bias_rate", bias_rate, in(0, 0.1),
          "step of the selection bias, once an optimizer step; 0 = no bias");
  v.field("bias_center", bias_center, "the bias keeps its mean");
}

BalanceLosses balance_losses(const Routing& routing, int64_t images, bool sequence, bool sigmoid,
                             int64_t devices) {
  const Tensor& s = routing.scores;
  const int64_t T = s.size(0), E = s.size(1);
  if (T == 0) return {torch::zeros({}, s.options()), torch::zeros({}, s.options())};
  const int64_t parts = sequence ? images : 1;
  const Tensor share = sigmoid ? s / s.sum(1, /*keepdim=*/true) : s;
  const Tensor P = share.view({parts, T / parts, E}).mean(1);  // [parts,E]
  const int64_t K = routing.pair_expert.size(0) / T;
  const Tensor place =
      sequence ? routing.pair_token.div(T / parts, "floor").mul_(E).add_(routing.pair_expert)
               : routing.pair_expert;
  const Tensor n = torch::zeros({parts * E}, s.options())
                       .index_add(0, place, torch::ones(routing.pair_expert.sizes(), s.options()))
                       .view({parts, E});
  const Tensor f =
      n * (static_cast<double>(E) * static_cast<double>(parts) / static_cast<double>(K * T));
  const auto by_device = [&](const Tensor& x) { return x.view({parts, devices, E / devices}); };
  return {.expert = (f * P).sum(1).mean(),
          .device = (by_device(f).mean(2) * by_device(P).sum(2)).sum(1).mean()};
}

Tensor moved_bias(const Tensor& bias, const Tensor& counts, double rate, bool center) {
  Tensor step = torch::sign(counts.mean() - counts) * rate;
  if (center) step = step - step.mean();
  return bias + step.to(bias.scalar_type());
}

}  // namespace sigma
