#include "sigma/tokenizer/tokenizer.h"

#include <torch/types.h>

#include "sigma/base/error.h"
#include "sigma/trunk/patches.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr double kTokenStd = 0.02;
constexpr double kStdFloor = 1e-6;

// Parameters that are not a layer's: queries, positions.
struct Tokens : Module {
  Tokens(const char* name, int64_t count, int64_t dim)
      : value(parameter(name, {count, dim}, Init::normal(kTokenStd))) {}
  Tensor value;
};

}  // namespace

void EncoderConfig::visit(ConfigVisitor& v) {
  v.field("queries", queries, in(1, 4096), "latent tokens");
  v.table("trunk", trunk, "the encoder's transformer");
}

void DecoderConfig::visit(ConfigVisitor& v) {
  v.table("trunk", trunk, "the decoder's transformer");
}

void LatentNormConfig::visit(ConfigVisitor& v) {
  v.field("images", images, in(100, 1e7),
          "training images that the latents' mean and deviation are measured on");
}

void TokenizerConfig::visit(ConfigVisitor& v) {
  v.field("patch_size", patch_size, in(1, 64), "side of a patch");
  v.table("encoder", encoder, "images to latents");
  v.table("bottleneck", bottleneck, "the latents");
  v.table("decoder", decoder, "latents to images");
  v.table("latent_norm", latent_norm, "normalisation of the latents for generators");
}

Tokenizer::Tokenizer(const TokenizerConfig& config, const std::vector<int64_t>& image_shape)
    : config_(config), image_shape_(image_shape) {
  SIGMA_CHECK(kUsage, image_shape.size() == 3, "tokenizer: expected images [C,H,W], got {} axes",
              image_shape.size());
  SIGMA_CHECK(kUsage, config.bottleneck.kind == "ae" && config.bottleneck.norm == "none",
              "bottleneck: expected ae without norm, got {} and {}", config.bottleneck.kind,
              config.bottleneck.norm);
  layout_.grid = patch_grid(image_shape[1], image_shape[2], config.patch_size);
  layout_.after = config.encoder.queries;
  const int64_t patch_width = image_shape[0] * config.patch_size * config.patch_size;
  const int64_t C = config.encoder.trunk.hidden_size;
  const int64_t Cd = config.decoder.trunk.hidden_size;
  const int64_t L = config.encoder.queries;
  const int64_t Z = config.bottleneck.dim;

  auto encoder = child<Module>("encoder");
  patch_embed_ = encoder->register_module("patch_embed", std::make_shared<Linear>(patch_width, C));
  queries_ = encoder->register_module("latent", std::make_shared<Tokens>("queries", L, C))->value;
  encoder_trunk_ = encoder->register_module(
      "trunk", std::make_shared<Trunk>(config.encoder.trunk, layout_.grid, Conditioning::kNone));
  encoder_norm_ = encoder->register_module("norm", std::make_shared<LayerNorm>(C));
  down_ = child<Linear>("down", C, Z);
  up_ = child<Linear>("up", Z, Cd);
  auto decoder = child<Module>("decoder");
  image_query_ = decoder->register_module("image", std::make_shared<Tokens>("query", 1, Cd))->value;
  latent_positions_ =
      decoder->register_module("latent", std::make_shared<Tokens>("positions", L, Cd))->value;
  decoder_trunk_ = decoder->register_module(
      "trunk", std::make_shared<Trunk>(config.decoder.trunk, layout_.grid, Conditioning::kNone));
  decoder_norm_ = decoder->register_module("norm", std::make_shared<LayerNorm>(Cd));
  head_ = decoder->register_module("head", std::make_shared<Linear>(Cd, patch_width));
  auto norm = child<Module>("latent_norm");
  latent_mean_ = norm->register_buffer("mean", torch::zeros({Z}, torch::kDouble));
  latent_std_ = norm->register_buffer("std", torch::ones({Z}, torch::kDouble));
}

Output Tokenizer::encode_raw(const Tensor& images, const Context& context) {
  const Tensor patches =
      patch_embed_->forward(to_compute(patchify(images, config_.patch_size), context));
  const Tensor queries = queries_.unsqueeze(0).expand({images.size(0), -1, -1});
  Output out = encoder_trunk_->forward(torch::cat({at_least_float(patches), queries}, 1), layout_,
                                       {}, context);
  const Tensor latents = out.value.narrow(1, layout_.grid.size(), layout_.after);
  out.value = down_->forward(encoder_norm_->forward(latents));
  return out;
}

Output Tokenizer::decode_raw(const Tensor& latents, const Context& context) {
  const Tensor u = up_->forward(latents) + latent_positions_;
  const Tensor queries = image_query_.expand({latents.size(0), layout_.grid.size(), -1});
  Output out = decoder_trunk_->forward(torch::cat({queries, u}, 1), layout_, {}, context);
  const Tensor h = decoder_norm_->forward(out.value.narrow(1, 0, layout_.grid.size()));
  const Tensor pixels = at_least_float(head_->forward(to_compute(h, context)));
  out.value = unpatchify(pixels, layout_.grid, config_.patch_size, image_shape_[0]);
  return out;
}

Tensor Tokenizer::encode(const Tensor& images, const Context& context) {
  const Tensor raw = encode_raw(images, context).value;
  return ((raw - latent_mean_) / latent_std_).to(raw.scalar_type());
}

Tensor Tokenizer::decode(const Tensor& latents, const Context& context) {
  const Tensor raw = (latents * latent_std_ + latent_mean_).to(up_->parameters()[0].scalar_type());
  return decode_raw(raw, context).value;
}

Output Tokenizer::forward(const Tensor& images, const Context& context) {
  Output encoded = encode_raw(images, context);
  Output decoded = decode_raw(encoded.value, context);
  decoded.absorb(encoded);
  if (torch::GradMode::is_enabled())
    decoded.losses["pixel"] = (decoded.value - images).square().mean();
  return decoded;
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
  const auto N = static_cast<double>(layout_.grid.size());
  const auto L = static_cast<double>(layout_.after);
  return patch_embed_->flops(N) + head_->flops(N) + down_->flops(L) + up_->flops(L) +
         encoder_trunk_->flops(layout_) + decoder_trunk_->flops(layout_);
}

}  // namespace sigma
