#include "sigma/tokenizer/encoder.h"

#include <torch/types.h>

#include "sigma/base/error.h"
#include "sigma/trunk/positions.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr double kTokenStd = 0.02;

}  // namespace

void EncoderConfig::visit(ConfigVisitor& v) {
  v.field("queries", queries, in(0, 4096), "latent tokens; 0 = the image tokens are the latents");
  v.field("prefix", prefix, in(0, 16), "learned tokens before all others");
  v.choice("order", order, {"image_first", "latents_first"}, "of image tokens and queries");
  v.choice("query_kind", query_kind, {"learned", "sincos"},
           "where queries start: learned, or a fixed table");
  v.field("causal", causal, "a query sees the image and the queries before it");
  v.table("trunk", trunk, "the encoder's transformer");
}

Encoder::Encoder(const EncoderConfig& config, const std::string& mask_policy, const Grid& grid,
                 int64_t patch_width)
    : config_(config), drops_(mask_policy == "drop") {
  const int64_t C = config.trunk.hidden_size, L = config.queries;
  const bool latents_first = config.order == "latents_first";
  SIGMA_CHECK(kUsage, !config.causal || (L > 0 && !latents_first),
              "tokenizer.encoder.causal: expected queries after the image, got {} queries, {}", L,
              config.order);
  layout_ = {.before = config.prefix + (latents_first ? L : 0),
             .grid = grid,
             .after = latents_first ? 0 : L,
             .pattern = config.causal ? Pattern::kCausalAfter : Pattern::kFull};
  patch_embed_ = child<Linear>("patch_embed", patch_width, C);
  if (mask_policy == "replace") mask_token_ = parameter("mask_token", {C}, Init::normal(kTokenStd));
  if (config.prefix > 0) prefix_ = parameter("prefix", {config.prefix, C}, Init::normal(kTokenStd));
  if (L > 0 && config.query_kind == "learned")
    queries_ = parameter("queries", {L, C}, Init::normal(kTokenStd));
  else if (L > 0)
    queries_ = register_buffer("queries", sincos_bv({.width = L}, C, 1).to(torch::kFloat));
  trunk_ = child<Trunk>("trunk", config.trunk, grid, Conditioning::kNone);
  norm_ = child<LayerNorm>("norm", C, config.trunk.norm_eps);
}

EncoderOutput Encoder::forward(const Tensor& patches, const Mask& mask, const Context& context) {
  const int64_t B = patches.size(0);
  Tensor x = at_least_float(patch_embed_->forward(to_compute(patches, context)));
  TokenLayout layout = layout_;
  if (mask.hidden.defined() && drops_) {
    layout.visible = mask.visible;
    x = x.gather(1, layout.visible.unsqueeze(2).expand({-1, -1, x.size(2)}));
  } else if (mask.hidden.defined()) {
    x = torch::where(mask.hidden.unsqueeze(2), mask_token_, x);
  }
  std::vector<Tensor> parts = {x};
  const auto tokens = [&](const Tensor& t) { return t.unsqueeze(0).expand({B, -1, -1}); };
  if (queries_.defined())
    parts.insert(layout.after > 0 ? parts.end() : parts.begin(), tokens(queries_));
  if (prefix_.defined()) parts.insert(parts.begin(), tokens(prefix_));
  EncoderOutput result;
  static_cast<Output&>(result) = trunk_->forward(torch::cat(parts, 1), layout, {}, context);
  const Tensor h = norm_->forward(result.value);
  result.prefix = h.narrow(1, 0, config_.prefix);
  if (layout.after > 0) result.value = h.narrow(1, h.size(1) - layout.after, layout.after);
  else if (config_.queries > 0) result.value = h.narrow(1, config_.prefix, config_.queries);
  else result.value = h.narrow(1, config_.prefix, layout.grid_tokens());
  return result;
}

double Encoder::flops() const {
  return patch_embed_->flops(static_cast<double>(layout_.grid.size())) + trunk_->flops(layout_);
}

}  // namespace sigma
