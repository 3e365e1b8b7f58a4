#include "sigma/tokenizer/tokenizer.h"

#include <torch/types.h>

#include <cmath>

#include "sigma/base/error.h"
#include "sigma/tokenizer/hog.h"
#include "sigma/trunk/patches.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr double kStdFloor = 1e-6;
constexpr double kPatchEps = 1e-6;  // of a patch's variance (MAE)

// Mean of a loss a patch [B,N], over hidden patches if they alone count.
Tensor mean_over(const Tensor& loss, const Mask& mask, bool masked_only) {
  if (!masked_only) return loss.mean();
  const Tensor weight = mask.hidden.to(loss.scalar_type());
  return (loss * weight).sum() / weight.sum();
}

}  // namespace

Tokenizer::Tokenizer(const TokenizerConfig& config, const std::vector<int64_t>& image_shape)
    : config_(config), image_shape_(image_shape) {
  SIGMA_CHECK(kUsage, image_shape.size() == 3, "tokenizer: expected images [C,H,W], got {} axes",
              image_shape.size());
  grid_ = patch_grid(image_shape[1], image_shape[2], config.patch_size);
  check_mask(config.mask);
  const bool masks = config.mask.policy != "none";
  SIGMA_CHECK(kUsage, masks || !config.pixel.masked_only,
              "tokenizer.pixel.masked_only: expected a mask.policy, got none");
  SIGMA_CHECK(kUsage, masks || config.hog.weight == 0 || !config.hog.masked_only,
              "tokenizer.hog.masked_only: expected a mask.policy, got none");
  SIGMA_CHECK(
      kUsage, config.mask.policy != "drop" || config.encoder.trunk.rope.kind != "sequence",
      "tokenizer.encoder.trunk.rope.kind: sequence counts all patches, expected mask.policy "
      "none or replace, got drop");
  const int64_t pixels = image_shape[0] * config.patch_size * config.patch_size;
  const int64_t L = config.encoder.queries, Z = config.bottleneck.dim;
  const int64_t C = config.encoder.trunk.hidden_size;

  encoder_ = child<Encoder>("encoder", config.encoder, config.mask.policy, grid_, pixels);
  bottleneck_ = register_module("bottleneck", make_bottleneck(config.bottleneck));
  SIGMA_CHECK(kUsage, config.down || bottleneck_->in_channels() == C,
              "tokenizer.down: without it bottleneck and encoder must agree, expected {} channels, "
              "got {}",
              C, bottleneck_->in_channels());
  SIGMA_CHECK(kUsage, !config.down || !config.decoder.encoder_prefix,
              "tokenizer.decoder.encoder_prefix: expected down = false");
  if (config.down) down_ = child<Linear>("down", C, bottleneck_->in_channels());
  if (config.nesting.kind == "nested") {
    SIGMA_CHECK(kUsage, L > 0, "tokenizer.nesting: expected encoder.queries, got 0");
    nesting_ = child<Nesting>("nesting", config.nesting, L, Z);
  }
  const int64_t prefix = config.encoder.prefix;
  decoder_ = child<Decoder>("decoder", config.decoder, grid_, L, Z, prefix, pixels);
  if (config.pixel.conv) {
    const int64_t I = image_shape[0];
    auto conv = child<Linear>("pixel_conv", I * 9, I);
    conv_weight_ = conv->parameters()[0];
    conv_bias_ = conv->parameters()[1];
  }
  if (config.hog.weight > 0) {
    DecoderConfig small = config.decoder;
    small.prefix = config.hog.prefix;
    small.encoder_prefix = false;
    small.trunk.hidden_size = config.hog.hidden_size;
    small.trunk.depth = config.hog.depth;
    small.trunk.num_heads = config.hog.num_heads;
    const int64_t side = std::min(config.hog.cells, config.patch_size);
    hog_ = child<Decoder>("hog", small, grid_, L, Z, prefix,
                          image_shape[0] * config.hog.bins * side * side);
  }
  auto norm = child<Module>("latent_norm");
  latent_mean_ = norm->register_buffer("mean", torch::zeros({Z}, torch::kDouble));
  latent_std_ = norm->register_buffer("std", torch::ones({Z}, torch::kDouble));
}

std::vector<int64_t> Tokenizer::latent_shape() const {
  const int64_t L = config_.encoder.queries;
  return {L > 0 ? L : grid_.size(), config_.bottleneck.dim};
}

bool Tokenizer::trains_latents() const {
  const auto trains = [](const torch::nn::Module& part) {
    for (const Tensor& p : part.parameters())
      if (p.requires_grad()) return true;
    return false;
  };
  return trains(*encoder_) || (down_ && trains(*down_)) || trains(*bottleneck_);
}

Tensor Tokenizer::patches(const Tensor& images) const {
  return patchify(images, config_.patch_size);
}

Tensor Tokenizer::to_image(const Tensor& prediction) const {
  const Tensor image = unpatchify(prediction, grid_, config_.patch_size, image_shape_[0]);
  if (!config_.pixel.conv) return image;
  const int64_t I = image_shape_[0];
  return torch::conv2d(image, conv_weight_.view({I, I, 3, 3}), conv_bias_, 1, 1);
}

Mask Tokenizer::mask_of(const Context& context) const {
  if (config_.mask.policy == "none") return {};
  return draw_mask(config_.mask, grid_.size(), context);
}

Tokenizer::Latents Tokenizer::code(const Tensor& images, const Mask& mask, const Context& context,
                                   Output& out) {
  const EncoderOutput encoded = encoder_->forward(patches(images), mask, context);
  out.absorb(encoded);
  Latents result;
  result.coded =
      bottleneck_->forward(down_ ? down_->forward(encoded.value) : encoded.value, context);
  if (config_.decoder.encoder_prefix) result.prefix = encoded.prefix;
  out.absorb({.value = {}, .losses = result.coded.losses, .statistics = result.coded.statistics});
  return result;
}

Coded Tokenizer::encode_raw(const Tensor& images, const Context& context) {
  Output unused;
  return code(images, {}, context, unused).coded;
}

Tensor Tokenizer::normalised(const Tensor& raw) const {
  return ((raw - latent_mean_) / latent_std_).to(raw.scalar_type());
}

Tensor Tokenizer::encode(const Tensor& images, const Context& context) {
  return normalised(encode_raw(images, context).latents);
}

Tensor Tokenizer::latents_of(const Tensor& indices) const {
  const int64_t V = config_.bottleneck.codes;
  SIGMA_CHECK(kUsage,
              indices.numel() == 0 ||
                  (indices.min().item<int64_t>() >= 0 && indices.max().item<int64_t>() < V),
              "tokenizer: expected codes in [0, {}), got {} to {}", V,
              indices.min().item<int64_t>(), indices.max().item<int64_t>());
  return normalised(bottleneck_->codes(indices));
}

Tensor Tokenizer::decode(const Tensor& latents, const Context& context, int64_t keep) {
  SIGMA_CHECK(kUsage, config_.pixel.target == "pixel",
              "tokenizer.pixel.target: decode expected pixel, got {}", config_.pixel.target);
  const int64_t L = latent_shape()[0];
  SIGMA_CHECK(kUsage, keep < 0 || nesting_,
              "keep: expected a tokenizer with nested prefixes (tokenizer.nesting)");
  SIGMA_CHECK(kUsage, keep <= L && keep != 0, "keep: expected 1 to {} tokens, got {}", L, keep);
  Tensor raw = (latents * latent_std_ + latent_mean_).to(decoder_->parameters()[0].scalar_type());
  if (nesting_ && keep > 0)
    raw = nesting_->forward(raw, torch::full({raw.size(0)}, keep, torch::kInt64));
  return to_image(decoder_->forward(raw, {}, {}, context).value);
}

// Of the prediction `image` for `images`; normalised patches become pixels of `image`.
Tensor Tokenizer::pixel_loss(Tensor& image, const Tensor& images, const Mask& mask) const {
  if (config_.pixel.target == "pixel" && !config_.pixel.masked_only)
    return (image - images).square().mean();
  const Tensor predicted = patches(image);
  Tensor target = patches(images);
  if (config_.pixel.target == "norm_pixel") {
    const Tensor mean = target.mean(2, /*keepdim=*/true);
    const Tensor deviation =
        (target.var(2, /*unbiased=*/true, /*keepdim=*/true) + kPatchEps).sqrt();
    target = (target - mean) / deviation;
    const int64_t p = config_.patch_size, I = image_shape_[0];
    const Tensor shown = (predicted.detach() * deviation + mean)
                             .view({images.size(0), grid_.size(), I, p * p})
                             .transpose(2, 3)  // (row, column, channel)
                             .flatten(2);
    image = unpatchify(shown, grid_, p, I);
  }
  return mean_over((predicted - target).square().mean(2), mask, config_.pixel.masked_only);
}

Output Tokenizer::forward(const Tensor& images, const Context& context) {
  Output result;
  const Mask mask = mask_of(context).to(images.device());
  Latents latents = code(images, mask, context, result);
  Tensor c = latents.coded.latents;
  if (nesting_) c = nesting_->forward(c, nesting_->draw(context));
  const Output decoded = decoder_->forward(c, mask, latents.prefix, context);
  result.absorb(decoded);
  result.value = to_image(decoded.value);
  const Tensor pixel = pixel_loss(result.value, images, mask);
  if (!torch::GradMode::is_enabled()) return result;
  result.losses["pixel"] = pixel;
  if (hog_) {
    const Output gradients = hog_->forward(c, mask, {}, context);
    result.absorb(gradients);
    const Tensor target =
        hog_targets(images, config_.patch_size, config_.hog.bins, config_.hog.cells);
    result.losses["hog"] =
        config_.hog.weight *
        mean_over((gradients.value - target).square().mean(2), mask, config_.hog.masked_only);
  }
  return result;
}

void Tokenizer::fit_latent_norm(const std::vector<Tensor>& batches) {
  const torch::NoGradGuard no_grad;
  const int64_t Z = config_.bottleneck.dim;
  std::vector<Tensor> rows;
  for (const Tensor& batch : batches)
    rows.push_back(batch.reshape({-1, Z}).to(torch::kCPU, torch::kDouble));
  const Tensor all = torch::cat(rows);
  SIGMA_CHECK(kUsage, all.size(0) >= 10 * Z, "latent_norm: expected at least {} tokens, got {}",
              10 * Z, all.size(0));
  latent_mean_.copy_(all.mean(0));
  latent_std_.copy_(all.std(0, /*unbiased=*/false).clamp_min(kStdFloor));
}

double Tokenizer::flops() const {
  const auto L = static_cast<double>(latent_shape()[0]);
  return encoder_->flops() + decoder_->flops() + (down_ ? down_->flops(L) : 0) +
         (hog_ ? hog_->flops() : 0);
}

}  // namespace sigma
