#include "sigma/trunk/trunk.h"

#include <torch/types.h>

#include <cmath>

#include "sigma/base/error.h"
#include "sigma/nn/gated_norm.h"
#include "sigma/trunk/positions.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr double kPositionStd = 0.02;
constexpr double kNormEps = 1e-6;

std::shared_ptr<Mlp> make_mlp(const TrunkConfig& config, bool chosen_layer) {
  if (config.mlp.kind == "moe" && chosen_layer) {
    return std::make_shared<MixtureOfExperts>(config.hidden_size, config.mlp.moe);
  }
  const auto hidden =
      static_cast<int64_t>(std::floor(static_cast<double>(config.hidden_size) * config.mlp_ratio));
  return std::make_shared<DenseMlp>(config.hidden_size, hidden, config.mlp.activation);
}

}  // namespace

Block::Block(int64_t dim, std::shared_ptr<Attention> attention, std::shared_ptr<Mlp> mlp,
             Conditioning conditioning) {
  if (conditioning == Conditioning::kNone) {
    norm1_ = child<LayerNorm>("norm1", dim, kNormEps);
    norm2_ = child<LayerNorm>("norm2", dim, kNormEps);
  }
  attn_ = register_module("attn", std::move(attention));
  mlp_ = register_module("mlp", std::move(mlp));
  if (conditioning == Conditioning::kAdaLnZero) {
    // "adaLN_modulation.1" in the published checkpoints: a SiLU stands before it there.
    auto modulation = child<Module>("adaLN_modulation");
    modulation_ = modulation->register_module(
        "1", std::make_shared<Linear>(dim, 6 * dim, true, Init::zero()));
  }
}

Output Block::forward(const Tensor& x, const Tensor& c, const TokenLayout& layout, const Rope* rope,
                      const Context& context) {
  Output result;
  if (!modulation_) {
    const Tensor h =
        x + attn_->forward(to_compute(norm1_->forward(x), context), layout, rope, context);
    const Output mlp = mlp_->forward(to_compute(norm2_->forward(h), context), context);
    result.absorb(mlp);
    result.value = h + mlp.value;
    return result;
  }
  const auto m = modulation_->forward(c).chunk(6, 1);
  const Tensor normed = gated_norm(x, {}, {}, m[0], m[1], kNormEps).y;
  const Tensor attended = attn_->forward(to_compute(normed, context), layout, rope, context);
  const GatedNorm second = gated_norm(x, attended, m[2], m[3], m[4], kNormEps);
  const Output mlp = mlp_->forward(to_compute(second.y, context), context);
  result.absorb(mlp);
  result.value = torch::addcmul(second.h, mlp.value, m[5].unsqueeze(1));
  return result;
}

double Block::flops(const TokenLayout& layout) const {
  return attn_->flops(layout) + mlp_->flops(layout.tokens()) +
         (modulation_ ? modulation_->flops(1) : 0);
}

Trunk::Trunk(const TrunkConfig& config, const Grid& grid, Conditioning conditioning)
    : config_(config), grid_(grid) {
  const int64_t dim = config.hidden_size;
  SIGMA_CHECK(kUsage, dim % config.num_heads == 0,
              "num_heads: expected a divisor of hidden_size = {}, got {}", dim, config.num_heads);
  if (config.position == "learned") {
    pos_embed_ = parameter("pos_embed", {1, grid.size(), dim}, Init::normal(kPositionStd));
  } else if (config.position == "sincos2d" || config.position == "sincos1d") {
    sincos_ = sincos_positions(grid, dim, config.position == "sincos2d" ? 2 : 1);
  } else if (config.position == "rope") {
    rope_axis_dims(config.rope, dim / config.num_heads,
                   grid.axes());  // refuses here, not at the first step
  }
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
    auto block =
        std::make_shared<Block>(dim, attention, make_mlp(config, mlp_layers[layer]), conditioning);
    blocks_.push_back(blocks->register_module(std::to_string(i), block));
  }
}

Tensor Trunk::add_positions(const Tensor& x, const TokenLayout& layout) {
  if (!pos_embed_.defined() && !sincos_.defined()) return x;
  if (sincos_.defined() &&
      (sincos_.scalar_type() != x.scalar_type() || sincos_.device() != x.device())) {
    sincos_ = sincos_positions(grid_, config_.hidden_size, config_.position == "sincos2d" ? 2 : 1)
                  .to(x.device(), x.scalar_type());
  }
  Tensor position = pos_embed_.defined() ? pos_embed_ : sincos_.unsqueeze(0);
  if (layout.visible.defined()) position = position.squeeze(0).index({layout.visible});
  if (layout.before + layout.after > 0) {
    position = torch::constant_pad_nd(position, {0, 0, layout.before, layout.after});
  }
  return x + position;
}

const Rope* Trunk::rope_for(const TokenLayout& layout, const Tensor& like) {
  if (config_.position != "rope") return nullptr;
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
  const Rope* rope = rope_for(layout, result.value);
  const Tensor c = condition.defined() ? torch::silu(condition) : condition;
  for (const auto& block : blocks_) {
    const Output out = block->forward(result.value, c, layout, rope, context);
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
