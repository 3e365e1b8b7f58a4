#include "sigma/tokenizer/decoder.h"

#include <torch/types.h>

#include "sigma/base/error.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr double kTokenStd = 0.02;

}  // namespace

void DecoderConfig::visit(ConfigVisitor& v) {
  v.choice("layout", layout, {"append", "in_place"},
           "latents beside the image queries, or in their places");
  v.choice("order", order, {"image_first", "latents_first"},
           "append: of image queries and latents");
  v.field("prefix", prefix, in(0, 16), "learned tokens before all others");
  v.field("encoder_prefix", encoder_prefix, "the encoder's prefix tokens come before all others");
  v.choice("image_query", image_query, {"shared", "per_position", "zero"},
           "what stands for a patch that is to be drawn");
  v.field("latent_positions", latent_positions, "append: learned positions of the latents");
  v.choice("condition", condition, {"none", "latent_tokens"},
           "the latents modulate their own rows in every block (MAETok)");
  v.field("scale_offset", scale_offset, in(0, 1),
          "latent_tokens: 1 = modulation starts as the identity, 0 = as published");
  v.table("trunk", trunk, "the decoder's transformer");
}

Decoder::Decoder(const DecoderConfig& config, const Grid& grid, int64_t latents, int64_t channels,
                 int64_t encoder_prefix, int64_t outputs)
    : config_(config), latents_(latents > 0 ? latents : grid.size()) {
  const int64_t Cd = config.trunk.hidden_size;
  const bool append = config.layout == "append";
  const bool latents_first = append && config.order == "latents_first";
  const bool modulated = config.condition == "latent_tokens";
  SIGMA_CHECK(kUsage, append == (latents > 0),
              "tokenizer.decoder.layout: append goes with queries, in_place without; got {} and {} "
              "queries",
              config.layout, latents);
  SIGMA_CHECK(kUsage, !modulated || (append && !latents_first),
              "tokenizer.decoder.condition: latent_tokens expects latents after the image, got {}, "
              "{}",
              config.layout, config.order);
  SIGMA_CHECK(kUsage, !config.encoder_prefix || (config.prefix == 0 && encoder_prefix > 0),
              "tokenizer.decoder.encoder_prefix: expected an encoder with a prefix and none of the "
              "decoder's, got {} and {}",
              encoder_prefix, config.prefix);
  const int64_t prefix = config.encoder_prefix ? encoder_prefix : config.prefix;
  layout_ = {.before = prefix + (latents_first ? latents : 0),
             .grid = grid,
             .after = latents_first ? 0 : latents};
  up_ = child<Linear>("up", channels, Cd);
  if (config.image_query != "zero") {
    const int64_t count = config.image_query == "shared" ? 1 : grid.size();
    image_query_ = parameter("image_query", {count, Cd}, Init::normal(kTokenStd));
  }
  if (append && config.latent_positions)
    latent_positions_ = parameter("latent_positions", {latents, Cd}, Init::normal(kTokenStd));
  if (config.prefix > 0)
    prefix_ = parameter("prefix", {config.prefix, Cd}, Init::normal(kTokenStd));
  trunk_ = child<Trunk>(
      "trunk", config.trunk, grid, modulated ? Conditioning::kLatentTokens : Conditioning::kNone,
      modulated ? LatentCondition{.dim = channels, .scale_offset = config.scale_offset}
                : LatentCondition{});
  // Under a condition the norm has no affine of its own; its modulation would touch latent rows
  // alone, which no prediction reads.
  if (!modulated) norm_ = child<LayerNorm>("norm", Cd, config.trunk.norm_eps);
  head_ = child<Linear>("head", Cd, outputs);
}

Tensor Decoder::image_tokens(int64_t batch, const Tensor& u, const Mask& mask) const {
  const int64_t N = layout_.grid.size(), Cd = u.size(2);
  const bool in_place = config_.layout == "in_place";
  if (in_place && !mask.hidden.defined()) return u;
  const Tensor m = image_query_.defined() ? image_query_.unsqueeze(0).expand({batch, N, Cd})
                                          : torch::zeros({batch, N, Cd}, u.options());
  if (!in_place) return m;
  if (u.size(1) == N) return torch::where(mask.hidden.unsqueeze(2), m, u);
  return m.scatter(1, mask.visible.unsqueeze(2).expand({-1, -1, Cd}), u);
}

Output Decoder::forward(const Tensor& c, const Mask& mask, const Tensor& prefix,
                        const Context& context) {
  const int64_t B = c.size(0);
  Tensor u = up_->forward(c);
  if (latent_positions_.defined()) u = u + latent_positions_;
  std::vector<Tensor> parts = {image_tokens(B, u, mask)};
  if (config_.layout == "append") parts.insert(layout_.after > 0 ? parts.end() : parts.begin(), u);
  if (config_.encoder_prefix) {
    SIGMA_CHECK(kUsage, prefix.defined(),
                "tokenizer.decoder.encoder_prefix: latents alone do not hold the encoder's prefix");
    parts.insert(parts.begin(), up_->forward(prefix));
  } else if (prefix_.defined()) {
    parts.insert(parts.begin(), prefix_.unsqueeze(0).expand({B, -1, -1}));
  }
  Output out = trunk_->forward(torch::cat(parts, 1), layout_, norm_ ? Tensor() : c, context);
  const Tensor h = out.value.narrow(1, layout_.before, layout_.grid.size());
  const Tensor normed = norm_ ? norm_->forward(h)
                              : torch::layer_norm(h, {h.size(-1)}, {}, {}, config_.trunk.norm_eps);
  out.value = at_least_float(head_->forward(to_compute(normed, context)));
  return out;
}

double Decoder::flops() const {
  return head_->flops(static_cast<double>(layout_.grid.size())) +
         up_->flops(static_cast<double>(latents_)) + trunk_->flops(layout_);
}

}  // namespace sigma
