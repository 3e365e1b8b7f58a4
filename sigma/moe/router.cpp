#include "sigma/moe/router.h"

#include <ATen/Parallel.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "sigma/base/error.h"
#include "sigma/moe/experts_grouped.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kRowsOfATask = 64;
constexpr double kTiny = 1e-20;  // of a sum of weights that all underflowed

// Places of the k largest along `dim`, best first. topk promises no order among ties: a stable sort
// does.
Tensor best(const Tensor& values, int64_t k, int64_t dim) {
  return std::get<1>(torch::sort(values, /*stable=*/true, dim, /*descending=*/true))
      .narrow(dim, 0, k);
}

// As best(r, k, 1), r [T,E] float32 on the CPU without NaN: a row's best so far, kept in order.
Tensor top_k_cpu(const Tensor& r, int64_t k) {
  const Tensor values = r.contiguous();
  const int64_t E = r.size(1);
  Tensor out = torch::empty({r.size(0), k}, r.options().dtype(torch::kInt64));
  at::parallel_for(0, r.size(0), kRowsOfATask, [&](int64_t from, int64_t to) {
    std::vector<float> value(static_cast<size_t>(k));
    for (int64_t t = from; t < to; ++t) {
      const float* row = values.data_ptr<float>() + t * E;
      int64_t* place = out.data_ptr<int64_t>() + t * k;
      for (int64_t e = 0; e < E; ++e) {
        // Equal ones keep their order: a later one goes behind.
        if (e >= k && row[e] <= value[k - 1]) continue;
        int64_t i = std::min(e, k - 1);
        for (; i > 0 && value[i - 1] < row[e]; --i) {
          value[i] = value[i - 1];
          place[i] = place[i - 1];
        }
        value[i] = row[e];
        place[i] = e;
      }
    }
  });
  return out;
}

// r with -inf outside the best groups.
Tensor within_groups(const RouterConfig& config, const Tensor& r) {
  const int64_t E = r.size(1);
  const Tensor grouped = r.view({-1, config.groups, E / config.groups});
  const Tensor score = config.group_score == "max"
                           ? grouped.amax(2)
                           : std::get<0>(grouped.topk(2, 2)).sum(2);  // a value: ties do not matter
  Tensor kept = torch::zeros_like(score, torch::kBool);
  kept.scatter_(1, best(score, config.top_groups, 1), true);
  return grouped.masked_fill(kept.logical_not().unsqueeze(2), -kInfinity).view_as(r);
}

Routing token_choice(const RouterConfig& config, int64_t K, const Tensor& logits,
                     const Tensor& bias) {
  Routing out{.pairs_a_token = K};
  out.scores = config.score == "softmax" ? torch::softmax(logits, 1) : torch::sigmoid(logits);
  Tensor r = out.scores.detach();
  if (bias.defined()) r = r + bias;
  r = r.nan_to_num(-kInfinity, kInfinity, -kInfinity);
  if (config.groups > 1) r = within_groups(config, r);
  // A copy: gather keeps it for the backward, and a view would keep the places of all experts.
  const Tensor chosen = r.scalar_type() != torch::kFloat ? best(r, K, 1).contiguous()
                        : r.is_cuda()                    ? top_k_cuda(r, K)
                                                         : top_k_cpu(r, K);
  Tensor g = out.scores.gather(1, chosen);
  if (config.normalize) g = g / (g.sum(1, /*keepdim=*/true) + kTiny);
  out.pair_token = torch::arange(logits.size(0), chosen.options()).repeat_interleave(K);
  out.pair_expert = chosen.flatten();
  out.pair_weight = (g * config.scale).flatten();
  return out;
}

Routing expert_choice(const RouterConfig& config, const Tensor& logits, int64_t images) {
  Routing out;
  out.scores = torch::softmax(logits, 1);
  const int64_t T = logits.size(0), E = logits.size(1);
  const int64_t N = images > 0 ? T / images : 0;
  const int64_t k = tokens_of_an_expert(N, config.capacity, E);
  const Tensor by_image = out.scores.view({images, N, E});
  const Tensor r = by_image.detach().nan_to_num(-kInfinity, kInfinity, -kInfinity);
  Tensor tokens = std::get<0>(best(r, k, 1).sort(1)).transpose(1, 2);  // [images,E,k] ascending
  tokens = tokens + (torch::arange(images, tokens.options()) * N).view({-1, 1, 1});
  out.pair_token = tokens.flatten();
  out.pair_expert = torch::arange(E, tokens.options()).view({1, -1, 1}).expand_as(tokens).flatten();
  out.pair_weight =
      out.scores.flatten().index_select(0, out.pair_token * E + out.pair_expert) * config.scale;
  return out;
}

}  // namespace

void RouterConfig::visit(ConfigVisitor& v) {
  v.choice("kind", kind, {"token_choice", "expert_choice"},
           "tokens choose experts, or experts choose the tokens of an image");
  v.field("scale", scale, above(0, 64), "factor on the weights of routed experts");
  if (v.when(kind, "token_choice")) {
    v.choice("score", score, {"softmax", "sigmoid"}, "from logits to scores");
    v.field("normalize", normalize, "the weights of a token's experts sum to scale");
    v.field("groups", groups, in(1, 256), "groups of experts of equal size");
    v.field("top_groups", top_groups, in(1, 256), "groups a token may choose from");
    v.choice("group_score", group_score, {"max", "top2_sum"},
             "what a group is worth: its best expert, or its two best");
  }
  if (v.when(kind, "expert_choice"))
    v.field("capacity", capacity, above(0, 1024), "experts of a token on average");
}

int64_t tokens_of_an_expert(int64_t N, double capacity, int64_t num_experts) {
  // Multiplied first, and a hair more: both roundings that are published can be one short.
  const double wanted = static_cast<double>(N) * capacity / static_cast<double>(num_experts);
  return std::clamp<int64_t>(static_cast<int64_t>(std::floor(wanted + 1e-9)),
                             std::min<int64_t>(1, N), N);
}

void check_router(const RouterConfig& config, int64_t num_experts, int64_t num_chosen) {
  if (config.kind == "expert_choice") {
    SIGMA_CHECK(kUsage, config.capacity <= static_cast<double>(num_experts),
                "mlp.router.capacity: expected at most num_experts = {}, got {}", num_experts,
                config.capacity);
    return;
  }
  SIGMA_CHECK(kUsage, num_chosen <= num_experts,
              "mlp.num_chosen: expected at most num_experts = {}, got {}", num_experts, num_chosen);
  SIGMA_CHECK(kUsage, num_experts % config.groups == 0,
              "mlp.router.groups: expected a divisor of num_experts = {}, got {}", num_experts,
              config.groups);
  const int64_t members = num_experts / config.groups;
  SIGMA_CHECK(kUsage, config.top_groups <= config.groups,
              "mlp.router.top_groups: expected at most groups = {}, got {}", config.groups,
              config.top_groups);
  SIGMA_CHECK(kUsage, num_chosen <= config.top_groups * members,
              "mlp.num_chosen: expected at most {} experts in top_groups = {}, got {}",
              config.top_groups * members, config.top_groups, num_chosen);
  SIGMA_CHECK(kUsage, config.groups == 1 || config.group_score == "max" || members >= 2,
              "mlp.router.group_score: top2_sum expects groups of at least 2 experts, got {}",
              members);
  SIGMA_CHECK(
      kUsage, !config.normalize || num_chosen > 1,
      "mlp.router.normalize: one expert a token would always weigh the same, and the router "
      "would not learn; got num_chosen = 1");
}

Routing route(const RouterConfig& config, int64_t num_chosen, const Tensor& logits,
              const Tensor& bias, int64_t images) {
  return config.kind == "expert_choice" ? expert_choice(config, logits, images)
                                        : token_choice(config, num_chosen, logits, bias);
}

}  // namespace sigma
