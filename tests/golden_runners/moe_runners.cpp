// Mixtures of experts with token choice by softmax and shared experts, where the router's options
// are built.
#include <torch/autograd.h>
#include <torch/types.h>

#include "sigma/moe/layer.h"
#include "tests/golden_runners/golden.h"

namespace sigma::golden {

using torch::Tensor;

namespace {

MoeConfig moe_config(const GoldenFile& file, const Json& options, int64_t dim) {
  require(options, "router.kind", {"token_choice"});
  require(options, "router.net", {"linear"});
  require(options, "router.score", {"softmax"});
  require(options, "router.normalize", {false});
  require(options, "router.scale", {1.0});
  require(options, "router.groups", {1});
  require(options, "router.unconditional_expert", {false});
  require(options, "router.force_balance", {false});
  require(options, "activation", {"swiglu"});
  require(options, "expert_bias", {false});
  for (const char* loss : {"device", "communication", "similarity", "contrastive"}) {
    require(options, std::string("balance.") + loss, {0});
  }
  if (file.has("selection_bias")) throw Skip{"router selection bias"};
  if (!file.has("w_in") || !file.has("x")) throw Skip{"router alone"};
  const int64_t width = file.get("w_out").size(2);
  const int64_t shared = file.has("shared_w_out") ? file.get("shared_w_out").size(1) : 0;
  if (shared % width != 0) throw Skip{"moe shared_width"};
  MoeConfig config;
  config.num_experts = whole(options, "num_experts", file.get("w_in").size(0));
  config.num_chosen = whole(options, "experts_per_token", 2);
  config.num_shared = shared / width;
  // A hair more than the quotient, so that no rounding makes it one narrower.
  config.expert_ratio = (static_cast<double>(width) + 1e-6) / static_cast<double>(dim);
  config.balance_weight = number(options, "balance.expert", 0);
  return config;
}

}  // namespace

void run_moe(const GoldenFile& file, Report& report) {
  const Json& options = file.options();
  const Tensor x = file.has("x") ? file.get("x").requires_grad_() : Tensor();
  const int64_t dim = x.defined() ? x.size(-1) : 0;
  const MoeConfig config = moe_config(file, options, dim);
  MixtureOfExperts moe(dim, config);
  moe.to(device(), torch::kDouble);
  auto parameters = moe.named_parameters();
  const std::vector<std::pair<std::string, std::string>> names = {
      {"router", "router_weight"},
      {"w_in", "w_in"},
      {"w_out", "w_out"},
      {"shared_in.weight", "shared_w_in"},
      {"shared_out.weight", "shared_w_out"}};
  for (const auto& [ours, theirs] : names) {
    const torch::NoGradGuard no_grad;
    if (parameters.contains(ours)) parameters[ours].copy_(file.get(theirs));
  }
  Context context;
  context.training = file.has("grad_y");
  const Output out = moe.forward(x, context);
  report.relative("y", out.value, file.get("y"), 1e-12);

  const bool by_batch = text(options, "balance.scope", "batch") == "batch";
  Tensor loss;
  if (file.has("loss_expert") && config.balance_weight > 0) {
    if (by_batch) {
      loss = out.losses.at("moe.balance");
      report.relative("loss_expert", loss.reshape({1}),
                      config.balance_weight * file.get("loss_expert").reshape({1}), 1e-12);
    } else {
      report.skip("balance.scope sequence");
    }
  }
  if (!file.has("grad_y")) return;

  // grad_*_task leaves the losses out; without a loss both are the same.
  std::vector<Tensor> inputs = {x};
  std::vector<std::string> gradients = {"grad_x"};
  for (const auto& [ours, theirs] : names) {
    if (!parameters.contains(ours)) continue;
    inputs.push_back(parameters[ours]);
    gradients.push_back("grad_" + theirs);
  }
  const auto compare = [&](const Tensor& total, bool task) {
    const auto grads = torch::autograd::grad({total}, inputs, {}, /*retain_graph=*/true, false,
                                             /*allow_unused=*/true);
    for (size_t i = 0; i < inputs.size(); ++i) {
      const bool affected = gradients[i] == "grad_x" || gradients[i] == "grad_router_weight";
      const std::string name = task && affected && file.has(gradients[i] + "_task")
                                   ? gradients[i] + "_task"
                                   : gradients[i];
      if (!file.has(name)) continue;
      const Tensor actual = grads[i].defined() ? grads[i] : torch::zeros_like(inputs[i]);
      report.relative(name, actual, file.get(name), 2e-7);
    }
  };
  const Tensor task = (out.value * file.get("grad_y")).sum();
  const bool has_task = file.has("grad_x_task");
  if (has_task || !file.has("loss_expert")) compare(task, has_task);
  if (loss.defined()) compare(task + loss, false);
}

}  // namespace sigma::golden
