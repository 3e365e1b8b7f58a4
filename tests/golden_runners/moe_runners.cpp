// Mixtures of experts: routers, plans, balance, and whole layers, where the options are built.
#include <torch/autograd.h>
#include <torch/types.h>

#include "sigma/moe/layer.h"
#include "tests/golden_runners/golden.h"

namespace sigma::golden {
namespace {

using torch::Tensor;

constexpr double kBound = 1e-12;     // outputs: float64 throughout
constexpr double kGradBound = 2e-7;  // gradients are stored in float32

RouterConfig router_of(const Json& options) {
  require(options, "router.kind", {"token_choice", "expert_choice"});
  require(options, "router.net", {"linear"});
  require(options, "router.score", {"softmax", "sigmoid"});
  require(options, "router.pool", {"image"});
  require(options, "router.unconditional_expert", {false});
  require(options, "router.force_balance", {false});
  return {.kind = text(options, "router.kind", "token_choice"),
          .score = text(options, "router.score", "softmax"),
          .normalize = flag(options, "router.normalize", false),
          .scale = number(options, "router.scale", 1),
          .groups = whole(options, "router.groups", 1),
          .top_groups = whole(options, "router.top_groups", 1),
          .group_score = text(options, "router.group_score", "max"),
          .capacity = number(options, "router.capacity", 2)};
}

// A hair more than the quotient, so that no rounding makes a width one narrower.
double ratio(int64_t width, int64_t dim) {
  return (static_cast<double>(width) + 1e-6) / static_cast<double>(dim);
}

MoeConfig layer_config(const GoldenFile& file, const Json& options, int64_t dim) {
  MoeConfig config;
  config.router = router_of(options);
  require(options, "activation", {"swiglu", "gelu", "gelu_tanh"});
  for (const char* loss : {"communication", "similarity", "contrastive"})
    require(options, std::string("balance.") + loss, {0});
  config.num_experts = whole(options, "num_experts", file.get("w_in").size(0));
  config.num_chosen = whole(options, "experts_per_token", 2);
  config.num_shared = 0;
  config.expert_ratio = ratio(file.get("w_out").size(2), dim);
  if (file.has("shared_w_out")) config.shared_ratio = ratio(file.get("shared_w_out").size(1), dim);
  config.expert_bias = flag(options, "expert_bias", false);
  config.expert_activation = text(options, "activation", "swiglu");
  config.balance.expert = number(options, "balance.expert", 0);
  config.balance.scope = text(options, "balance.scope", "batch");
  if (file.has("selection_bias")) config.balance.bias_rate = 1e-3;
  return config;
}

Tensor counts_of(const Routing& routing) {
  const Tensor& s = routing.scores;
  return make_plan(routing.pair_token, routing.pair_expert, s.size(0), s.size(1))
      .counts()
      .to(s.scalar_type());
}

void check_routing(const GoldenFile& file, const Routing& routing, Report& report) {
  if (file.has("scores")) report.relative("scores", routing.scores, file.get("scores"), kBound);
  const std::string ids = file.has("ids") ? "ids" : "token_ids";
  if (file.has(ids)) {
    const Tensor expected = file.get(ids);
    const Tensor actual = ids == "ids" ? routing.pair_expert : routing.pair_token;
    report.exact(ids, actual.view(expected.sizes()), expected);
  }
  if (file.has("weights")) {
    const Tensor expected = file.get("weights");
    report.relative("weights", routing.pair_weight.view(expected.sizes()), expected, kBound);
  }
  if (file.has("counts")) report.exact("counts", counts_of(routing), file.get("counts"));
}

// Router and gradients through the weights.
void run_gate(const GoldenFile& file, const Json& options, Report& report) {
  const Tensor x = file.get("x").requires_grad_();
  const Tensor weight = file.get("router_weight").requires_grad_();
  const Tensor bias = file.has("selection_bias") ? file.get("selection_bias") : Tensor();
  const Routing routing = route(router_of(options), whole(options, "experts_per_token", 2),
                                torch::linear(x, weight), bias, 1);
  check_routing(file, routing, report);
  if (file.has("wrong_ids_masked_with_zero"))
    report.is_true("masking with zero must not match",
                   !torch::equal(routing.pair_expert.cpu(),
                                 file.get("wrong_ids_masked_with_zero").flatten().cpu()));
  if (!file.has("grad_weights")) return;
  (routing.pair_weight * file.get("grad_weights").flatten()).sum().backward();
  report.relative("grad_x", x.grad(), file.get("grad_x"), kGradBound);
  report.relative("grad_router_weight", weight.grad(), file.get("grad_router_weight"), kGradBound);
}

void run_section12(const GoldenFile& file, Report& report) {
  for (const auto& [name, options] : file.options().items()) {
    Tensor bias;
    if (options.contains("selection_bias"))
      bias = torch::full({8}, number(options, "selection_bias", 0),
                         torch::TensorOptions(torch::kDouble).device(device()));
    const Routing routing = route(router_of(options), 3, file.get("logits"), bias, 1);
    report.exact("ids_" + name, routing.pair_expert.view({1, 3}), file.get("ids_" + name));
    report.relative("weights_" + name, routing.pair_weight.view({1, 3}),
                    file.get("weights_" + name), kBound);
  }
}

void run_plan(const GoldenFile& file, const Json& options, Report& report) {
  const int64_t E = whole(options, "num_experts", 9);
  for (const std::string& name : file.prefixes("pair_expert")) {
    const auto get = [&](const char* part) { return file.get(name + "." + part); };
    const int64_t T = get("token_offsets").size(0) - 1;
    const Tensor expert = get("pair_expert");
    const Tensor token =
        file.has(name + ".pair_token")
            ? get("pair_token")
            : torch::arange(T, expert.options()).repeat_interleave(expert.size(0) / T);
    const Plan plan = make_plan(token, expert, T, E);
    report.exact(name + ".offsets", plan.offsets, get("offsets"));
    report.exact(name + ".row_token", plan.row_token, get("row_token"));
    report.exact(name + ".row_pair", plan.row_pair, get("row_pair"));
    report.exact(name + ".token_offsets", plan.token_offsets, get("token_offsets"));
    report.exact(name + ".token_rows", plan.token_rows, get("token_rows"));
  }
}

void run_balance(const GoldenFile& file, const Json& options, Report& report) {
  for (const bool sequence : {false, true}) {
    const Tensor logits = file.get("logits").requires_grad_();
    const Tensor bias = file.has("selection_bias") ? file.get("selection_bias") : Tensor();
    const int64_t B = file.meta("B").get<int64_t>();
    const RouterConfig router = router_of(options);
    const Routing routing = route(router, whole(options, "experts_per_token", 2), logits, bias, B);
    if (!sequence) check_routing(file, routing, report);
    const BalanceLosses losses = balance_losses(routing, B, sequence, router.score == "sigmoid",
                                                whole(options, "balance.devices", 1));
    const std::string scope = sequence ? "_sequence" : "_batch";
    for (const auto& [name, loss] :
         {std::pair{"expert", losses.expert}, std::pair{"device", losses.device}}) {
      report.relative("loss_" + (name + scope), loss.reshape({1}),
                      file.get("loss_" + (name + scope)).reshape({1}), kBound);
      const Tensor grad = torch::autograd::grad({loss}, {logits}, {}, /*retain_graph=*/true)[0];
      report.relative("grad_logits_" + (name + scope), grad,
                      file.get("grad_logits_" + (name + scope)), kGradBound);
    }
  }
  report.skip("moe communication and similarity losses");
}

void run_bias(const GoldenFile& file, const Json& options, Report& report) {
  const double rate = number(options, "balance.bias_rate", 0);
  if (file.has("counts_micro")) {
    const Tensor counts = file.get("counts_micro").sum(1).to(torch::kDouble);  // [step,layer,E]
    Tensor centred = file.get("bias_before"), free = centred;
    for (int64_t step = 0; step < counts.size(0); ++step) {
      std::vector<Tensor> a, b;
      for (int64_t layer = 0; layer < counts.size(1); ++layer) {
        a.push_back(moved_bias(centred[layer], counts[step][layer], rate, true));
        b.push_back(moved_bias(free[layer], counts[step][layer], rate, false));
      }
      centred = torch::stack(a);
      free = torch::stack(b);
      report.absolute("bias_after", centred, file.get("bias_after")[step], kBound);
      report.absolute("bias_after_not_centred", free, file.get("bias_after_not_centred")[step],
                      kBound);
    }
    return;
  }
  const Tensor logits = torch::linear(file.get("x"), file.get("router_weight"));
  Tensor bias = torch::zeros({logits.size(1)}, logits.options());
  const Tensor expected = file.get("bias_by_step");
  for (int64_t step = 0; step < expected.size(0); ++step) {
    const Routing routing =
        route(router_of(options), whole(options, "experts_per_token", 2), logits, bias, 1);
    const Tensor counts = counts_of(routing);
    report.exact("counts_by_step", counts, file.get("counts_by_step")[step]);
    bias = moved_bias(bias, counts, rate, true);
    report.absolute("bias_by_step", bias, expected[step], kBound);
    report.absolute("max_violation", (counts.max() / counts.mean() - 1).reshape({1}),
                    file.get("max_violation")[step].reshape({1}), kBound);
  }
}

void run_ties(const GoldenFile& file, Report& report) {
  // Scores as logits: what is monotonous keeps the order, and exact ties stay ties.
  const Tensor scores = file.get("tie_scores");
  const Routing tokens = route({}, 3, scores, {}, 1);
  report.exact("tie_topk_ids", tokens.pair_expert.view({-1, 3}), file.get("tie_topk_ids"));
  report.skip("moe race");
}

void run_layer(const GoldenFile& file, const Json& options, Report& report) {
  const Tensor x = file.get("x").requires_grad_();
  const int64_t dim = x.size(-1);
  const MoeConfig config = layer_config(file, options, dim);
  MixtureOfExperts moe(dim, config);
  moe.to(device(), torch::kDouble);
  auto parameters = moe.named_parameters();
  const std::vector<std::pair<std::string, std::string>> names = {
      {"router", "router_weight"},
      {"w_in", "w_in"},
      {"w_out", "w_out"},
      {"b_in", "b_in"},
      {"b_out", "b_out"},
      {"shared_in.weight", "shared_w_in"},
      {"shared_out.weight", "shared_w_out"}};
  {
    const torch::NoGradGuard no_grad;
    for (const auto& [ours, theirs] : names)
      if (parameters.contains(ours)) parameters[ours].copy_(file.get(theirs));
    if (file.has("selection_bias"))
      moe.named_buffers()["selection_bias"].copy_(file.get("selection_bias"));
  }
  Context context;
  context.training = file.has("grad_y");
  const Output out = moe.forward(x, context);
  report.relative("y", out.value, file.get("y"), kBound);
  check_routing(file, moe.last_routing(), report);
  Tensor loss;
  if (file.has("loss_expert")) {
    loss = out.losses.at("moe.balance");
    report.relative("loss_expert", loss.reshape({1}),
                    config.balance.expert * file.get("loss_expert").reshape({1}), kBound);
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
      report.relative(name, actual, file.get(name), kGradBound);
    }
  };
  const Tensor task = (out.value * file.get("grad_y")).sum();
  const bool has_task = file.has("grad_x_task");
  if (has_task || !file.has("loss_expert")) compare(task, has_task);
  if (loss.defined()) compare(task + loss, false);
}

}  // namespace

void run_moe(const GoldenFile& file, Report& report) {
  const Json& options = file.options();
  const std::string name = file.path().stem().string();
  if (name == "hf_dsv3_golden_section12") return run_section12(file, report);
  if (name == "formula_plan") return run_plan(file, options, report);
  if (name.starts_with("formula_balance")) return run_balance(file, options, report);
  if (name == "formula_race_ties") return run_ties(file, report);
  if (name.starts_with("torchtitan")) return run_bias(file, options, report);
  if (file.has("w_in")) return run_layer(file, options, report);
  return run_gate(file, options, report);
}

}  // namespace sigma::golden
