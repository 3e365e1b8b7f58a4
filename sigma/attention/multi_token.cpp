#include "sigma/attention/multi_token.h"

#include <torch/types.h>

#include <algorithm>
#include <cmath>

#include "sigma/attention/block_plan.h"
#include "sigma/base/error.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr double kNormEps = 1e-5;

Grid box_of(const std::string& key, const std::vector<int64_t>& sides, int axes,
            int64_t of_sequence) {
  const std::vector<int64_t> usual(static_cast<size_t>(axes), axes == 1 ? of_sequence : 3);
  return box_of_sides("attention." + key, sides.empty() ? usual : sides, axes);
}

}  // namespace

void MultiTokenConfig::visit(ConfigVisitor& v) {
  v.choice("query_side", query_side, {"centre", "past"},
           "queries that a kernel sees: around the own one, or up to it (causal sequences)");
  const auto sides = [&](const char* key, std::vector<int64_t>& value, const char* what) {
    v.field(key, value, in(1, 15), what);
  };
  sides("pre_kernel_q", pre_kernel_q,
        "sides of the kernel before the softmax over queries, one an axis; [] = 3 an axis, "
        "sequences 5 (past: 6)");
  sides("pre_kernel_k", pre_kernel_k, "the same over keys (odd); [] = 3 an axis, sequences 11");
  sides("post_kernel_q", post_kernel_q, "sides of the kernel after the softmax over queries");
  sides("post_kernel_k", post_kernel_k, "the same over keys");
  v.field("pre_conv", pre_conv, "convolution of scores before the softmax");
  v.field("post_conv", post_conv, "convolution of probabilities after the softmax");
  v.field("pre_heads", pre_heads, in(1, 128), "heads that mix before the softmax; 1 = none");
  v.field("post_heads", post_heads, in(1, 128), "heads that mix after the softmax; 1 = none");
  v.field("norm", norm, "RMS norm of every head's output");
  v.choice("gate", gate, {"scalar", "none"}, "sigmoid gate of every head's output");
  v.field("depth_scale", depth_scale, "times 1 - (.8 - .6 exp(-.3 layer))");
}

MultiTokenAttention::MultiTokenAttention(const MultiTokenConfig& config, int64_t dim,
                                         int64_t num_heads, bool qk_norm, const Grid& grid,
                                         int64_t layer)
    : config_(config),
      num_heads_(num_heads),
      head_dim_(dim / num_heads),
      depth_factor_(1 - (0.8 - 0.6 * std::exp(-0.3 * static_cast<double>(layer)))) {
  SIGMA_CHECK(kUsage, num_heads >= 1 && dim % num_heads == 0,
              "num_heads: expected a divisor of hidden_size = {}, got {}", dim, num_heads);
  SIGMA_CHECK(kUsage, config.query_side == "centre" || grid.axes() == 1,
              "query_side: past queries exist on sequences, got a grid of {} axes", grid.axes());
  qkv_ = child<Linear>("qkv", dim, 3 * dim);
  proj_ = child<Linear>("proj", dim, dim);
  if (qk_norm) {
    q_norm_ = child<RmsNorm>("q_norm", head_dim_);
    k_norm_ = child<RmsNorm>("k_norm", head_dim_);
  }
  before_ = mixing("pre", config.pre_conv, config.pre_kernel_q, config.pre_kernel_k,
                   config.pre_heads, grid.axes());
  after_ = mixing("post", config.post_conv, config.post_kernel_q, config.post_kernel_k,
                  config.post_heads, grid.axes());
  if (config.norm) norm_ = child<RmsNorm>("norm", head_dim_, kNormEps);
  if (config.gate == "scalar") gate_ = child<Linear>("gate", head_dim_, 1, true, Init::zero());
}

ScoreMixing MultiTokenAttention::mixing(const std::string& name, bool conv,
                                        const std::vector<int64_t>& q,
                                        const std::vector<int64_t>& k, int64_t heads, int axes) {
  SIGMA_CHECK(kUsage, num_heads_ % heads == 0,
              "{}_heads: expected a divisor of num_heads = {}, got {}", name, num_heads_, heads);
  ScoreMixing m;
  if (conv) {
    const bool past = config_.query_side == "past";
    const Grid queries = box_of(name + "_kernel_q", q, axes, past ? 6 : 5);
    m.queries = past ? past_steps(queries) : centred_steps(queries, name + "_kernel_q");
    m.keys = centred_steps(box_of(name + "_kernel_k", k, axes, 11), name + "_kernel_k");
    const auto own = [](const std::vector<GridStep>& steps) {
      return std::find(steps.begin(), steps.end(), GridStep{}) - steps.begin();
    };
    const auto keys = static_cast<int64_t>(m.keys.size());
    m.kernel =
        parameter(name + "_kernel", {num_heads_, static_cast<int64_t>(m.queries.size()), keys},
                  Init::impulse(own(m.queries) * keys + own(m.keys)));
  }
  if (heads > 1)
    m.mix = parameter(name + "_mix", {num_heads_ / heads, heads, heads}, Init::identity());
  return m;
}

Tensor MultiTokenAttention::finish(const Tensor& heads) const {
  Tensor out = norm_ ? norm_->forward(heads) : heads;
  if (config_.depth_scale) out = out * depth_factor_;
  if (gate_) out = out * torch::sigmoid(at_least_float(gate_->forward(out))).to(out.scalar_type());
  return out;
}

Tensor MultiTokenAttention::forward(const Tensor& x, const TokenLayout& layout, const Rope* rope,
                                    const Context&) {
  const int64_t B = x.size(0);
  const int64_t N = x.size(1);
  SIGMA_CHECK(
      kUsage, layout.pattern == Pattern::kFull || layout.grid.axes() == 1,
      "attention: multi-token attention with causality expects a sequence, got a grid of {} "
      "axes",
      layout.grid.axes());
  SIGMA_CHECK(kUsage, layout.pattern != Pattern::kCausal || config_.query_side == "past",
              "query_side: a causal layout expects past, got {}", config_.query_side);
  const auto parts =
      qkv_->forward(x).view({B, N, 3, num_heads_, head_dim_}).permute({2, 0, 3, 1, 4}).unbind(0);
  MultiTokenInput in{.q = parts[0],
                     .k = parts[1],
                     .v = parts[2],
                     .layout = layout,
                     .before = before_,
                     .after = after_};
  if (q_norm_) {
    in.q = q_norm_->forward(in.q);
    in.k = k_norm_->forward(in.k);
  }
  if (rope) {
    in.q = rope->rotate(in.q, rope->table());
    in.k = rope->rotate(in.k, rope->table());
  }
  const Tensor out = finish(multi_token_attention(in).out);
  return proj_->forward(out.transpose(1, 2).reshape({B, N, num_heads_ * head_dim_}));
}

double MultiTokenAttention::flops(const TokenLayout& layout) const {
  const auto N = static_cast<double>(layout.tokens());
  const double pairs = N * N * static_cast<double>(num_heads_);
  double a_pair = 4 * static_cast<double>(head_dim_);
  for (const ScoreMixing* m : {&before_, &after_}) {
    if (m->kernel.defined()) a_pair += 2 * static_cast<double>(m->queries.size() * m->keys.size());
    if (m->mix.defined()) a_pair += 2 * static_cast<double>(m->mix.size(2));
  }
  return qkv_->flops(N) + proj_->flops(N) + pairs * a_pair;
}

}  // namespace sigma
