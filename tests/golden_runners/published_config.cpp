// The configuration of a published tokenizer from a golden file's options.
#include "tests/golden_runners/published_config.h"

#include <torch/types.h>

namespace sigma::golden {
namespace {

Json table(const Json& options, const std::string& key) {
  const Json found = options.value(key, Json());
  return found.is_object() ? found : Json::object();
}

// What the options of maetok-train-step leave out.
const Json kTrainStep = {{"encoder",
                          {{"queries", 4},
                           {"prefix", 1},
                           {"position", {{"image", "rope2d_mixed"}, {"theta", 10}}},
                           {"trunk", {{"width", 16}, {"depth", 1}, {"heads", 2}}}}},
                         {"decoder", {{"trunk", {{"condition", "latent_tokens"}, {"depth", 1}}}}},
                         {"bottleneck", {{"dim", 3}}}};

TrunkConfig trunk_of(const Json& options, TrunkConfig trunk) {
  trunk.hidden_size = whole(options, "width", trunk.hidden_size);
  trunk.depth = whole(options, "depth", trunk.depth);
  trunk.num_heads = whole(options, "heads", trunk.num_heads);
  trunk.mlp_ratio = number(options, "mlp_ratio", trunk.mlp_ratio);
  trunk.norm_eps = number(options, "norm_eps", trunk.norm_eps);
  trunk.attention.qkv_bias = flag(options, "qkv_bias", trunk.attention.qkv_bias);
  trunk.mlp.activation = text(options, "mlp", trunk.mlp.activation);
  return trunk;
}

// Fixed positions are a stored table, as learned ones are, or computed.
void set_positions(const Json& options, bool computed, TrunkConfig& encoder, TrunkConfig& decoder) {
  const std::string image = text(options, "image", "learned");
  encoder.rope.theta = number(options, "theta", encoder.rope.theta);
  encoder.position = "learned";
  if (image == "sincos2d" && computed) encoder.position = "sincos2d";
  if (image.starts_with("rope1d")) encoder.rope.kind = "sequence";
  if (image.starts_with("rope2d_axial")) {
    encoder.rope.kind = "axial";
    encoder.rope.columns_first = true;
  }
  if (image.starts_with("rope2d_mixed")) encoder.rope.kind = "mixed";
  if (options.contains("also")) {
    const bool added = text(options, "also", "") == "sincos2d";
    encoder.position = !added ? "none" : computed ? "sincos2d_bv" : "learned";
  }
  decoder.rope = encoder.rope;
  decoder.position = encoder.rope.kind == "mixed" ? "none" : encoder.position;
}

void set_bottleneck(const Json& options, Source source, TokenizerConfig& config) {
  BottleneckConfig& b = config.bottleneck;
  config.down = flag(options, "down", true);
  b.kind = text(options, "kind", "ae");
  b.dim = config.down ? whole(options, "dim", 0) : config.encoder.trunk.hidden_size;
  const std::string norm = text(options, "norm", "none");
  b.norm = norm.substr(0, norm.find(' '));
  b.codes = whole(options, "codes", b.codes);
  b.commit = number(options, "commit", b.commit);
  b.kl_reduction = text(options, "kl_reduction", "sum");
  b.kl_weight = source == Source::kVitok ? 1 : source == Source::kTitok ? 1e-3 : 0;  // the notes
}

void set_heads(const Json& heads, TokenizerConfig& config) {
  for (const Json& head : heads) {
    const std::string target = text(head, "target", "");
    if (target == "norm_pixel") {
      config.pixel.target = target;
      config.pixel.masked_only = flag(head, "masked_only", false);
    }
    if (target == "hog")
      config.hog = {.weight = 1,
                    .masked_only = flag(head, "masked_only", false),
                    .hidden_size = whole(head, "width", 0),
                    .depth = whole(head, "depth", 0),
                    .num_heads = whole(head, "heads", 0),
                    .prefix = whole(head, "prefix", 0)};
  }
}

}  // namespace

Source source_of(const GoldenFile& file) {
  if (file.has("weight.encoder2slot.weight")) return Source::kSemanticist;
  if (file.has("weight.tubelet_embed.proj.weight")) return Source::kVitok;
  if (file.has("weight.decoder_pred.weight")) return Source::kMae;
  return file.has("weight.encoder.ln_pre.weight") ? Source::kTitok : Source::kMaetok;
}

PublishedConfig published_config(const GoldenFile& file, bool computed) {
  Json options = file.options();
  if (!options.contains("encoder")) options.update(kTrainStep);
  const Source source = source_of(file);
  const Json input = table(options, "input"), ordering = table(options, "ordering");
  const Json encoder = table(options, "encoder"), decoder = table(options, "decoder");
  PublishedConfig out;
  out.image_shape = {file.get("input.images").size(1), whole(input, "height", 0),
                     whole(input, "width", 0)};
  out.keep = whole(ordering, "keep", -1);
  TokenizerConfig& config = out.tokenizer;
  config.patch_size = whole(input, "patch", 0);

  EncoderConfig& e = config.encoder;
  e.queries = whole(encoder, "queries", 0);
  e.prefix = whole(encoder, "prefix", 0);
  e.order = text(encoder, "order", "image_first");
  e.causal = text(encoder, "pattern", "full") == "causal_latents";
  const Json position = table(encoder, "position");
  if (text(position, "latent", "").starts_with("sincos1d_bv")) e.query_kind = "sincos";
  e.trunk.mlp.activation = "gelu";
  e.trunk.pre_norm = flag(encoder, "pre_norm", false);
  e.trunk = trunk_of(table(encoder, "trunk"), e.trunk);

  DecoderConfig& d = config.decoder;
  const bool conditioned = text(table(decoder, "trunk"), "condition", "none") == "latent_tokens";
  d.layout = text(decoder, "layout", "append").starts_with("in_place") ? "in_place" : "append";
  d.order = e.order;
  d.encoder_prefix = source == Source::kMae;
  if (!d.encoder_prefix) d.prefix = whole(decoder, "prefix", 0);
  d.image_query = text(decoder, "image_queries", "shared");
  d.latent_positions = source != Source::kVitok;
  d.condition = conditioned ? "latent_tokens" : "none";
  d.scale_offset = whole(decoder, "scale_offset", 0);
  d.trunk = trunk_of(table(decoder, "trunk"), e.trunk);
  set_positions(position, computed, e.trunk, d.trunk);
  // Their values are weights: any start makes them.
  if (source == Source::kMaetok) e.trunk.layer_scale = 1;
  if (source == Source::kMaetok && !conditioned) d.trunk.layer_scale = 1;

  set_bottleneck(table(options, "bottleneck"), source, config);
  if (text(ordering, "kind", "none") == "nested" || source == Source::kSemanticist)
    config.nesting = {.kind = "nested", .null = text(ordering, "null", "")};
  config.pixel.conv = text(decoder, "pixel_conv", "none") == "conv3";
  if (source == Source::kMae) config.mask = {.policy = "drop", .per = "step"};
  if (source == Source::kMaetok) config.mask.policy = "replace";
  set_heads(options.value("heads", Json::array()), config);
  return out;
}

}  // namespace sigma::golden
