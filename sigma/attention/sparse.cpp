#include "sigma/attention/sparse.h"

#include <torch/types.h>

#include <algorithm>
#include <cmath>

#include "sigma/attention/fused_attention.h"
#include "sigma/attention/packed_heads.h"
#include "sigma/attention/windows.h"
#include "sigma/base/error.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr int64_t kWindowBlock = 64;  // compressed keys of a block

Grid block_of(const std::vector<int64_t>& sides, int axes) {
  static const std::vector<std::vector<int64_t>> kDefault = {{64}, {8, 8}, {4, 4, 4}};
  return box_of_sides("attention.block",
                      sides.empty() ? kDefault[static_cast<size_t>(axes - 1)] : sides, axes);
}

}  // namespace

SparseConfig nsa_paper() {
  SparseConfig config{.block = {64},
                      .compress_size = 32,
                      .compress_stride = 16,
                      .window = 512,
                      .separate_kv = true};
  config.selection.num_selected = 16;
  return config;
}

void SparseConfig::visit(ConfigVisitor& v) {
  v.field("block", block, in(1, 1024),
          "sides of a block on the grid's axes (frames, rows, columns); [] = 64 | 8, 8 | 4, 4, 4");
  v.field("compress_size", compress_size, in(0, 1024),
          "tokens of a compressed window of a sequence; 0 = the block's");
  v.field("compress_stride", compress_stride, in(0, 1024),
          "tokens between windows of a sequence; 0 = compress_size");
  v.choice("compress", compress, {"mean", "mlp"}, "a window's key and value: mean, or mean + mlp");
  v.field("window", window, in(0, 65536),
          "causal sequences: tokens of the window branch; 0 = none");
  v.field("num_kv_heads", num_kv_heads, in(0, 128), "key/value heads; 0 = num_heads");
  v.field("separate_kv", separate_kv, "keys and values of its own for each branch");
  selection.visit(v);
}

SparseAttention::SparseAttention(const SparseConfig& config, int64_t dim, int64_t num_heads,
                                 bool qk_norm, const Grid& grid)
    : config_(config),
      num_heads_(num_heads),
      kv_heads_(config.num_kv_heads > 0 ? config.num_kv_heads : num_heads),
      head_dim_(dim / num_heads),
      branches_(config.window > 0 ? 3 : 2),
      block_(block_of(config.block, grid.axes())) {
  SIGMA_CHECK(kUsage, num_heads >= 1 && dim % num_heads == 0,
              "num_heads: expected a divisor of hidden_size = {}, got {}", dim, num_heads);
  SIGMA_CHECK(kUsage, num_heads % kv_heads_ == 0,
              "num_kv_heads: expected a divisor of num_heads = {}, got {}", num_heads, kv_heads_);
  const bool sequence = grid.axes() == 1;
  size_ = sequence && config.compress_size > 0 ? config.compress_size : block_.size();
  stride_ = sequence && config.compress_stride > 0 ? config.compress_stride : size_;
  SIGMA_CHECK(kUsage, sequence || (config.compress_size == 0 && config.compress_stride == 0),
              "compress_size, compress_stride: expected 0 on a grid of {} axes, got {}, {}",
              grid.axes(), config.compress_size, config.compress_stride);
  SIGMA_CHECK(
      kUsage, size_ % stride_ == 0 && block_.size() % stride_ == 0 && size_ <= block_.size(),
      "compress: expected a compress_stride that divides compress_size and the block, and a "
      "compress_size of at most the block's; got {}, {}, {}",
      stride_, size_, block_.size());
  const int64_t kv_sets = config.separate_kv ? branches_ : 1;
  q_ = child<Linear>("q", dim, dim);
  kv_ = child<Linear>("kv", dim, 2 * kv_sets * kv_heads_ * head_dim_);
  proj_ = child<Linear>("proj", dim, dim);
  gate_ = child<Linear>("gate", dim, num_heads * branches_, /*bias=*/true, Init::zero(),
                        Init::constant(-std::log(static_cast<double>(branches_ - 1))));
  if (qk_norm) {
    q_norm_ = child<RmsNorm>("q_norm", head_dim_);
    k_norm_ = child<RmsNorm>("k_norm", head_dim_);
  }
  if (config.compress == "mlp") {
    compress_k_ = compressor("compress_k");
    compress_v_ = compressor("compress_v");
  }
}

SparseAttention::Compressor SparseAttention::compressor(const std::string& name) {
  struct Mlp : Module {
    Mlp(int64_t size, int64_t D)
        : pe(parameter("pe", {size, D}, Init::zero())),
          in(child<Linear>("fc1", size * D, 2 * D)),
          out(register_module("fc2", std::make_shared<Linear>(2 * D, D, true, Init::zero()))) {}
    Tensor pe;
    std::shared_ptr<Linear> in, out;
  };
  const auto mlp = child<Mlp>(name, size_, head_dim_);
  return {.pe = mlp->named_parameters()["pe"], .in = mlp->in, .out = mlp->out};
}

// For a GPU, without a copy of the windows: rows of stride_ tokens, one after the other, times the
// parts of W1 that any window has for them. A window is the sum of its rows' products,
//   W1 (x + pe) + b1 = sum_j W1_j x_j + (W1 pe + b1),
// and below W1 stand columns of ones, for the mean.
Tensor SparseAttention::compressed_rows(const Tensor& x, int64_t windows,
                                        const Compressor& mlp) const {
  const int64_t parts = size_ / stride_;
  const Tensor rows = first_of(x, 2, (windows + parts - 1) * stride_)
                          .unflatten(2, {windows + parts - 1, stride_})
                          .flatten(3);
  const Tensor& W1 = mlp.in->weight();
  const int64_t width = W1.size(0) + head_dim_;  // of a part
  const Tensor ones = torch::eye(head_dim_, W1.options()).repeat({1, size_});
  const Tensor weight =
      torch::cat({W1, ones}).unflatten(1, {parts, -1}).transpose(0, 1).flatten(0, 1);
  const Tensor shift = torch::linear(mlp.pe.flatten(), W1, mlp.in->bias());
  const Tensor bias = torch::constant_pad_nd(shift, {0, parts * width - W1.size(0)});
  const Tensor products = torch::linear(rows, weight.to(x.scalar_type()), bias.to(x.scalar_type()));
  Tensor sum = first_of(products, 3, width);
  if (parts > 1) sum = sum.slice(2, 0, windows);
  for (int64_t j = 1; j < parts; ++j)
    sum = sum + products.slice(2, j, j + windows).slice(3, j * width, (j + 1) * width);
  const auto both = sum.split_with_sizes({W1.size(0), head_dim_}, -1);
  return both[1] / size_ + mlp.out->forward(torch::gelu(both[0]));
}

Tensor SparseAttention::compressed(const Tensor& x, const Plan& plan, const Compressor& mlp) const {
  const int64_t count = plan.window_tokens.size(0);
  if (mlp.in && x.is_cuda() && plan.regular) return compressed_rows(x, count, mlp);
  const Windows windows =
      plan.regular && size_ == stride_ ? Windows(x, count, size_) : Windows(x, plan.window_tokens);
  if (!mlp.in) return windows.mean();
  Tensor vec = windows.slots + mlp.pe.to(x.scalar_type());
  if (windows.known.defined()) vec = vec * windows.known;
  return windows.mean() + mlp.out->forward(torch::gelu(mlp.in->forward(vec.flatten(3))));
}

Tensor SparseAttention::projected(const Tensor& x) const {
  const Tensor out = Linear::side_by_side({q_, kv_, gate_}, x);
  if (!q_norm_) return out;
  const int64_t sets = config_.separate_kv ? branches_ : 1;
  const int64_t heads = num_heads_ + 2 * sets * kv_heads_;
  const Tensor rows = out.slice(-1, 0, heads * head_dim_).unflatten(-1, {heads, head_dim_});
  std::vector<Tensor> parts = {q_norm_->forward(rows.slice(2, 0, num_heads_)).flatten(2)};
  for (int64_t i = 0; i < 2 * sets; ++i) {
    const Tensor part = rows.narrow(2, num_heads_ + i * kv_heads_, kv_heads_);
    parts.push_back((i % 2 == 0 ? k_norm_->forward(part) : part).flatten(2));
  }
  parts.push_back(out.slice(-1, heads * head_dim_));
  return torch::cat(parts, -1);
}

AttentionOutput SparseAttention::branch(BlockSparseInput input, size_t at) {
  auto& tables = plan_->tables;
  if (input.q.is_cuda()) {
    tables.resize(std::max(tables.size(), at + 1));
    if (!tables[at]) tables[at] = block_tables(input);
    input.tables = tables[at];
  }
  return block_sparse_attention(input);
}

Tensor SparseAttention::forward(const Tensor& x, const TokenLayout& layout, const Rope* rope,
                                const Context&) {
  SIGMA_CHECK(kUsage, x.size(1) == layout.tokens(), "attention: expected {} tokens, got {}",
              layout.tokens(), x.size(1));
  const Plan& plan = plan_for(layout, x.device());
  const BlockGeometry& geometry = plan.geometry;
  const int64_t B = x.size(0);
  const int64_t N = x.size(1);
  const int64_t Ng = geometry.grid.size();
  const torch::TensorOptions ids = torch::TensorOptions(torch::kInt).device(x.device());

  const int64_t sets = config_.separate_kv ? branches_ : 1;
  PackInput input{.rows = projected(x), .head_dim = head_dim_, .order = plan.order, .rope = rope};
  // Every branch reads queries, keys and values; the compressed one keys that are not turned.
  const auto readers = static_cast<size_t>(branches_);
  input.parts = {{.heads = num_heads_, .turned = std::vector<bool>(readers, true)}};
  for (int64_t i = 0; i < sets; ++i) {
    HeadsPart keys{.heads = kv_heads_, .turned = std::vector<bool>(sets > 1 ? 1 : readers, true)};
    if (i == 0) keys.turned[0] = false;
    input.parts.push_back(keys);
    input.parts.push_back(
        {.heads = kv_heads_, .turned = std::vector<bool>(keys.turned.size(), false)});
  }
  const PackedHeads packed = pack_heads(input);
  const auto q = [&](size_t i) { return first_of(packed.heads[i], 2, Ng); };
  const auto key = [&](size_t i) { return packed.heads[readers + (sets > 1 ? 2 * i : i)]; };
  const auto value = [&](size_t i) {
    return packed.heads[sets > 1 ? readers + 2 * i + 1 : 2 * readers + i];
  };
  const Tensor raw = first_of(key(0), 2, Ng);
  const Tensor rank = geometry.rank();

  // Compressed.
  Tensor ck = compressed(raw, plan, compress_k_);
  const Tensor cv = compressed(first_of(value(0), 2, Ng), plan, compress_v_);
  if (rope && ck.size(2) > 0) ck = rope->rotate(ck, rope->at(plan.centres));
  const Tensor window_start = block_starts(ck.size(2), kWindowBlock);
  const int64_t window_blocks = window_start.size(0) - 1;
  BlockSparseInput coarse{
      .q = q(0), .k = ck, .v = cv, .kv_start = window_start, .q_start = plan.tile_start};
  coarse.index =
      torch::arange(window_blocks, ids).expand({B, kv_heads_, geometry.grid_blocks, window_blocks});
  if (plan.causal) {
    coarse.rank_q = rank.slice(0, 0, Ng);
    coarse.rank_k = plan.window_rank;
  }
  const AttentionOutput compressed_out = branch(coarse, 0);
  std::vector<Tensor> outs = {compressed_out.out};

  // Selected.
  lists_ = choose(q(1), ck, compressed_out.lse, raw, plan);
  Tensor lists = lists_;
  if (geometry.blocks > geometry.grid_blocks) {
    const Tensor others = torch::arange(geometry.grid_blocks, geometry.blocks, ids);
    lists = torch::cat({lists, others.expand({B, kv_heads_, lists.size(2), -1})}, 3);
  }
  BlockSparseInput selected{
      .q = q(1), .k = key(1), .v = value(1), .index = lists, .kv_start = geometry.start};
  if (plan.causal) {
    selected.rank_q = rank.slice(0, 0, Ng);
    selected.rank_k = rank;
  } else {
    selected.q_start = plan.tile_start;
  }
  outs.push_back(branch(selected, 1).out);

  // Window.
  if (config_.window > 0) {
    BlockSparseInput near{.q = q(2),
                          .k = key(2),
                          .v = value(2),
                          .kv_start = geometry.start,
                          .q_start = plan.tile_start,
                          .rank_q = rank.slice(0, 0, Ng),
                          .rank_k = rank,
                          .window = config_.window};
    near.index = plan.near.expand({B, kv_heads_, plan.near.size(0), plan.near.size(1)});
    outs.push_back(branch(near, 2).out);
  }

  GatedSumInput sum{.branches = outs,
                    .gates = first_of(packed.rest, 2, num_heads_ * branches_),
                    .order = plan.order,
                    .inverse = plan.inverse};
  if (N > Ng) {  // tokens beside the grid
    const int64_t M = num_heads_ / kv_heads_;
    sum.beside = fused_attention(packed.heads[1].slice(2, Ng), key(1).repeat_interleave(M, 1),
                                 value(1).repeat_interleave(M, 1), plan.beside);
  }
  return proj_->forward(gated_sum(sum));
}

double SparseAttention::flops(const TokenLayout& layout) const {
  const auto N = static_cast<double>(layout.tokens());
  const auto Ng = static_cast<double>(layout.grid.size());
  const auto dim = static_cast<double>(num_heads_ * head_dim_);
  const double windows = Ng / static_cast<double>(stride_);
  const double listed =
      std::min(static_cast<double>(config_.selection.num_selected * block_.size()), Ng);
  const double near = config_.window > 0 ? static_cast<double>(config_.window) : 0;
  double sum = q_->flops(N) + kv_->flops(N) + proj_->flops(N) + gate_->flops(Ng) +
               4 * Ng * (windows + listed + near) * dim;
  if (compress_k_.in)
    sum += static_cast<double>(kv_heads_) *
           (compress_k_.in->flops(windows) + compress_k_.out->flops(windows)) * 2;
  return sum;
}

}  // namespace sigma
