#include "sigma/trunk/trunk.h"

#include <torch/types.h>

#include <cmath>
#include <optional>

#include "sigma/base/error.h"
#include "sigma/nn/gated_norm.h"
#include "sigma/trunk/positions.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr double kPositionStd = 0.02;

std::shared_ptr<Mlp> make_mlp(const TrunkConfig& config, bool chosen_layer) {
  if (config.mlp.kind == "moe" && chosen_layer) {
    return std::make_shared<MixtureOfExperts>(config.hidden_size, config.mlp.moe);
  }
  const auto hidden =
      static_cast<int64_t>(std::floor(static_cast<double>(config.hidden_size) * config.mlp_ratio));
  return std::make_shared<DenseMlp>(config.hidden_size, hidden, config.mlp.activation);
}

}  // namespace

Tensor modulate_latents(const Tensor& n, const Tensor& shift, const Tensor& scale, double offset) {
  const int64_t L = shift.size(1), others = n.size(1) - L;
  return torch::cat({n.narrow(1, 0, others), n.narrow(1, others, L) * (offset + scale) + shift}, 1);
}

Block::Block(const TrunkConfig& config, std::shared_ptr<Attention> attention,
             std::shared_ptr<Mlp> mlp, Conditioning conditioning, const LatentCondition& latents)
    : eps_(config.norm_eps), latents_(latents) {
  const int64_t dim = config.hidden_size;
  if (conditioning == Conditioning::kNone) {
    norm1_ = child<LayerNorm>("norm1", dim, eps_);
    norm2_ = child<LayerNorm>("norm2", dim, eps_);
  }
  attn_ = register_module("attn", std::move(attention));
  mlp_ = register_module("mlp", std::move(mlp));
  if (config.layer_scale > 0) {
    scale1_ = parameter("layer_scale1", {dim}, Init::constant(config.layer_scale));
    scale2_ = parameter("layer_scale2", {dim}, Init::constant(config.layer_scale));
  }
  if (conditioning != Conditioning::kNone) {
    // "adaLN_modulation.1" in the published checkpoints: a SiLU stands before it there.
    const bool by_latents = conditioning == Conditioning::kLatentTokens;
    auto modulation = child<Module>("adaLN_modulation");
    modulation_ = modulation->register_module(
        "1", std::make_shared<Linear>(by_latents ? latents.dim : dim, (by_latents ? 4 : 6) * dim,
                                      true, Init::zero()));
  }
}

Output Block::forward(const Tensor& x, const Tensor& c, const TokenLayout& layout, const Rope* rope,
                      const Context& context) {
  if (modulation_ && latents_.dim == 0) return adaptive(x, c, layout, rope, context);
  std::vector<Tensor> m;
  if (modulation_) m = modulation_->forward(c).chunk(4, 2);
  const auto normed = [&](const Tensor& h, const std::shared_ptr<LayerNorm>& norm, size_t part) {
    if (norm) return to_compute(norm->forward(h), context);
    const Tensor n = torch::layer_norm(h, {h.size(-1)}, {}, {}, eps_);
    return to_compute(modulate_latents(n, m[part], m[part + 1], latents_.scale_offset), context);
  };
  const auto scaled = [](const Tensor& branch, const Tensor& factor) {
    return factor.defined() ? branch * factor : branch;
  };
  Output result;
  const Tensor attended = attn_->forward(normed(x, norm1_, 0), layout, rope, context);
  const Tensor h = x + scaled(attended, scale1_);
  const Output mlp = mlp_->forward(normed(h, norm2_, 2), context);
  result.absorb(mlp);
  result.value = h + scaled(mlp.value, scale2_);
  return result;
}

Output Block::adaptive(const Tensor& x, const Tensor& c, const TokenLayout& layout,
                       const Rope* rope, const Context& context) {
  Output result;
  const auto m = modulation_->forward(c).chunk(6, 1);
  const Tensor normed = gated_norm(x, {}, {}, m[0], m[1], eps_).y;
  const Tensor attended = attn_->forward(to_compute(normed, context), layout, rope, context);
  const GatedNorm second = gated_norm(x, attended, m[2], m[3], m[4], eps_);
  const Output mlp = mlp_->forward(to_compute(second.y, context), context);
  result.absorb(mlp);
  result.value = torch::addcmul(second.h, mlp.value, m[5].unsqueeze(1));
  return result;
}

double Block::flops(const TokenLayout& layout) const {
  return attn_->flops(layout) + mlp_->flops(layout.tokens()) +
         (modulation_ ? modulation_->flops(latents_.dim > 0 ? static_cast<double>(layout.after) : 1)
                      : 0);
}

Trunk::Trunk(const TrunkConfig& config, const Grid& grid, Conditioning conditioning,
             const LatentCondition& latents)
    : config_(config), grid_(grid) {
  const int64_t dim = config.hidden_size;
  SIGMA_CHECK(kUsage, dim % config.num_heads == 0,
              "num_heads: expected a divisor of hidden_size = {}, got {}", dim, config.num_heads);
  SIGMA_CHECK(kUsage, config.layer_scale == 0 || conditioning == Conditioning::kNone,
              "layer_scale: conditioned blocks have gates of their own, expected 0, got {}",
              config.layer_scale);
  const int64_t head_dim = dim / config.num_heads;
  if (config.position == "learned")
    pos_embed_ = parameter("pos_embed", {1, grid.size(), dim}, Init::normal(kPositionStd));
  sincos_ = fixed_positions();
  if (config.rope.kind == "axial" || config.rope.kind == "sequence")  // refuses here, not later
    rope_axis_dims(config.rope, head_dim, config.rope.kind == "axial" ? grid.axes() : 1);
  if (config.rope.kind == "mixed") {
    SIGMA_CHECK(kUsage, head_dim % 4 == 0,
                "rope: kind mixed expects heads of a multiple of 4 channels, got {}", head_dim);
    rope_freqs_ = parameter("rope_freqs", {2, config.depth, config.num_heads, head_dim / 2},
                            Init::rotary(config.rope.theta));
  }
  if (config.pre_norm) pre_norm_ = child<LayerNorm>("pre_norm", dim, config.norm_eps);
  const std::vector<bool> attention_layers =
      select_layers(config.attention.layers, config.depth, "attention.layers");
  const std::vector<bool> mlp_layers = select_layers(config.mlp.layers, config.depth, "mlp.layers");
  AttentionConfig dense = config.attention;
  dense.kind = "dense";
  auto blocks = child<Module>("blocks");
  for (int64_t i = 0; i < config.depth; ++i) {
    const auto layer = static_cast<size_t>(i);
    auto attention = make_attention(attention_layers[layer] ? config.attention : dense, dim,
                                    config.num_heads, grid, i);
    auto block = std::make_shared<Block>(config, attention, make_mlp(config, mlp_layers[layer]),
                                         conditioning, latents);
    blocks_.push_back(blocks->register_module(std::to_string(i), block));
  }
}

Tensor Trunk::fixed_positions() const {
  const int64_t dim = config_.hidden_size;
  if (config_.position == "sincos1d") return sincos_positions(grid_, dim, 1);
  if (config_.position == "sincos2d") return sincos_positions(grid_, dim, 2);
  return config_.position == "sincos2d_bv" ? sincos_bv(grid_, dim, 2) : Tensor();
}

Tensor Trunk::add_positions(const Tensor& x, const TokenLayout& layout) {
  if (!pos_embed_.defined() && !sincos_.defined()) return x;
  if (sincos_.defined() &&
      (sincos_.scalar_type() != x.scalar_type() || sincos_.device() != x.device())) {
    sincos_ = fixed_positions().to(x.device(), x.scalar_type());
  }
  Tensor position = pos_embed_.defined() ? pos_embed_ : sincos_.unsqueeze(0);
  if (layout.visible.defined()) position = position.squeeze(0).index({layout.visible});
  if (layout.before + layout.after > 0) {
    position = torch::constant_pad_nd(position, {0, 0, layout.before, layout.after});
  }
  return x + position;
}

const Rope* Trunk::rope_for(const TokenLayout& layout, const Tensor& like) {
  if (config_.rope.kind == "none" || rope_freqs_.defined()) return nullptr;
  const bool same = rope_ && !layout.visible.defined() && !rope_layout_.visible.defined() &&
                    rope_layout_.before == layout.before && rope_layout_.after == layout.after &&
                    rope_layout_.grid == layout.grid && rope_dtype_ == like.scalar_type() &&
                    rope_->table().cos.device() == like.device();
  if (!same) {
    rope_ = std::make_unique<Rope>(config_.rope, config_.hidden_size / config_.num_heads, layout,
                                   like.scalar_type(), like.device());
    rope_layout_ = layout;
    rope_dtype_ = like.scalar_type();
  }
  return rope_.get();
}

Output Trunk::forward(const Tensor& x, const TokenLayout& layout, const Tensor& condition,
                      const Context& context) {
  SIGMA_CHECK(kUsage, layout.grid == grid_,
              "trunk: expected a grid of {} x {} x {}, got {} x {} x {}", grid_.frames,
              grid_.height, grid_.width, layout.grid.frames, layout.grid.height, layout.grid.width);
  Output result;
  result.value = add_positions(at_least_float(x), layout);
  if (pre_norm_) result.value = pre_norm_->forward(result.value);
  const Rope* rope = rope_for(layout, result.value);
  const Tensor c = condition.defined() ? torch::silu(condition) : condition;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    std::optional<Rope> mixed;
    if (rope_freqs_.defined())
      mixed.emplace(rope_freqs_.select(1, static_cast<int64_t>(i)),
                    config_.rope.pairing == "interleaved", layout);
    const Output out =
        blocks_[i]->forward(result.value, c, layout, mixed ? &*mixed : rope, context);
    result.absorb(out);
    result.value = out.value;
  }
  return result;
}

double Trunk::flops(const TokenLayout& layout) const {
  double sum = 0;
  for (const auto& block : blocks_) sum += block->flops(layout);
  return sum;
}

}  // namespace sigma
