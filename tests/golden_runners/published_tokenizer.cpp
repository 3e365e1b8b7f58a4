#include "tests/golden_runners/published_tokenizer.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <algorithm>
#include <utility>

#include "sigma/base/error.h"
#include "sigma/trunk/patches.h"
#include "tests/golden_runners/published_config.h"

namespace sigma::golden {
namespace {

using torch::Tensor;

constexpr double kRounded = 1e-6;  // gradients of the files are float32

using Pairs = std::vector<std::pair<std::string, std::string>>;

/// How names become ours.
struct Naming {
  Pairs starts;                     // the first that fits
  Pairs parts;                      // each, wherever it stands
  std::vector<std::string> unused;  // parts of names that the library has no use for
};

const Naming& naming(Source source) {
  static const std::map<Source, Naming> kNamings = {
      {Source::kMaetok,
       {.starts = {{"encoder.latent_tokens", "encoder.queries"},
                   {"encoder.latent_pos_embed", "encoder.queries"},
                   {"encoder.model.blocks.", "encoder.trunk.blocks."},
                   {"encoder.model.", "encoder."},
                   {"decoder.model.blocks.", "decoder.trunk.blocks."},
                   {"decoder.model.", "decoder."},
                   {"decoder.to_pixel.model.", "decoder.head."},
                   {"decoder_hog.model.blocks.", "hog.trunk.blocks."},
                   {"decoder_hog.model.", "hog."},
                   {"decoder_hog.", "hog."},
                   {"decoder_dino.model.blocks.", "dino.trunk.blocks."},
                   {"decoder_dino.model.", "dino."},
                   {"decoder_dino.", "dino."},
                   {"to_pixel_hog.", "hog.head."},
                   {"to_pixel_dino.", "dino.head."},
                   {"post_quant_conv_hog.", "hog.up."},
                   {"post_quant_conv_dino.", "dino.up."},
                   {"post_quant_conv.", "decoder.up."},
                   {"quant_conv.", "down."}},
        .parts = {{"patch_embed.proj.", "patch_embed."},
                  {".cls_token", ".prefix"},
                  {".freqs", ".trunk.rope_freqs"},
                  {".latent_pos_embed", ".latent_positions"},
                  {"decoder.mask_token", "decoder.image_query"},
                  {"hog.mask_token", "hog.image_query"},
                  {"dino.mask_token", "dino.image_query"},
                  {".ls1.gamma", ".layer_scale1"},
                  {".ls2.gamma", ".layer_scale2"}},
        // Decoders have a ViT's embeddings that they do not read; the modulation of the last norm
        // touches no image token.
        .unused = {"decoder.patch_embed.", "hog.patch_embed.", "dino.patch_embed.",
                   "decoder.pos_embed", "hog.pos_embed", "dino.pos_embed", "freqs_t_",
                   ".norm.adaLN_modulation."}}},
      {Source::kTitok,
       {.starts = {{"latent_tokens", "encoder.queries"},
                   {"encoder.latent_token_positional_embedding", "encoder.queries"},
                   {"encoder.conv_out.", "down."},
                   {"decoder.conv_out.", "pixel_conv."},
                   {"decoder.decoder_embed.", "decoder.up."},
                   {"decoder.ffn.0.", "decoder.head."},
                   {"decoder.mask_token", "decoder.image_query"},
                   {"decoder.latent_token_positional_embedding", "decoder.latent_positions"},
                   {"quantize.embedding.weight", "bottleneck.codebook"}},
        .parts = {{".class_embedding", ".prefix"},
                  {".positional_embedding", ".pos_embed"},
                  {".transformer.", ".trunk.blocks."},
                  {".ln_pre.", ".trunk.pre_norm."},
                  {".ln_post.", ".norm."},
                  {".ln_1.", ".norm1."},
                  {".ln_2.", ".norm2."},
                  {".in_proj_", ".qkv."},
                  {".out_proj.", ".proj."},
                  {".c_fc.", ".fc1."},
                  {".c_proj.", ".fc2."}},
        .unused = {}}},
      {Source::kSemanticist,
       {.starts = {{"encoder.slot_embed", "encoder.queries"},
                   {"encoder2slot.", "down."},
                   {"dit.null_cond", "nesting.null"}},
        .parts = {{"encoder.blocks.", "encoder.trunk.blocks."},
                  {"patch_embed.proj.", "patch_embed."},
                  {".cls_token", ".prefix"}},
        .unused = {"dit."}}},
      {Source::kMae,
       {.starts = {{"decoder_blocks.", "decoder.trunk.blocks."},
                   {"blocks.", "encoder.trunk.blocks."},
                   {"cls_token", "encoder.prefix"},
                   {"pos_embed", "encoder.pos_embed"},
                   {"decoder_pos_embed", "decoder.pos_embed"},
                   {"patch_embed.proj.", "encoder.patch_embed."},
                   {"norm.", "encoder.norm."},
                   {"decoder_embed.", "decoder.up."},
                   {"decoder_norm.", "decoder.norm."},
                   {"decoder_pred.", "decoder.head."},
                   {"mask_token", "decoder.image_query"}},
        .parts = {},
        .unused = {}}},
      {Source::kVitok,
       {.starts = {{"encoder.blocks.", "encoder.trunk.blocks."},
                   {"decoder.blocks.", "decoder.trunk.blocks."},
                   {"tubelet_embed.proj.", "encoder.patch_embed."},
                   {"tubelet_decode.proj.", "decoder.head."},
                   {"encoder_to_code.", "down."},
                   {"code_to_decoder.", "decoder.up."},
                   {"code", "encoder.queries"},
                   {"posemb", "encoder.trunk.pos_embed"},
                   {"dec_posemb", "decoder.trunk.pos_embed"},
                   {"mask_token", "nesting.null"}},
        .parts = {},
        .unused = {}}},
  };
  return kNamings.at(source);
}

void replace(std::string& name, const std::string& from, const std::string& to) {
  const size_t at = name.find(from);
  if (at != std::string::npos) name.replace(at, from.size(), to);
}

std::string our_name(std::string name, const Naming& naming) {
  for (const auto& [from, to] : naming.starts) {
    if (!name.starts_with(from)) continue;
    name = to + name.substr(from.size());
    break;
  }
  for (const auto& [from, to] : naming.parts) replace(name, from, to);
  return name;
}

}  // namespace

PublishedTokenizer::PublishedTokenizer(const GoldenFile& file, bool computed)
    : source_(source_of(file)) {
  const PublishedConfig config = published_config(file, computed);
  keep_ = config.keep;
  image_tokens_ =
      patch_grid(config.image_shape[1], config.image_shape[2], config.tokenizer.patch_size).size();
  tokenizer_ = std::make_shared<Tokenizer>(config.tokenizer, config.image_shape);
  tokenizer_->to(device(), torch::kDouble);
  for (const auto& item : tokenizer_->named_parameters()) ours_[item.key()] = item.value();
  if (config.tokenizer.encoder.query_kind == "sincos" && !computed)
    ours_["encoder.queries"] = tokenizer_->named_buffers()["encoder.queries"];
  if (file.has("input.target.dino")) {
    const TokenizerConfig& t = config.tokenizer;
    DecoderConfig small = t.decoder;
    small.prefix = t.hog.prefix;
    small.trunk.hidden_size = t.hog.hidden_size;
    small.trunk.depth = t.hog.depth;
    small.trunk.num_heads = t.hog.num_heads;
    features_ = std::make_shared<Decoder>(
        small, patch_grid(config.image_shape[1], config.image_shape[2], t.patch_size),
        t.encoder.queries, t.bottleneck.dim, 0, file.get("input.target.dino").size(2));
    features_->to(device(), torch::kDouble);
    for (const auto& item : features_->named_parameters())
      ours_["dino." + item.key()] = item.value();
  }
  load(file);
}

bool PublishedTokenizer::add(const std::string& ours, const Tensor& value, int64_t row) {
  const auto found = ours_.find(ours);
  if (found == ours_.end()) return false;
  const Tensor& parameter = found->second;
  Tensor part = value;
  if (value.numel() != parameter.numel()) {
    const int64_t rows = parameter.size(0);
    part = value.reshape({-1, parameter.numel() / rows});
    const int64_t below = rows - row - part.size(0);
    SIGMA_CHECK(kData, below >= 0, "{}: {} rows are too many for {}", ours, part.size(0), rows);
    part = torch::constant_pad_nd(part, {0, 0, row, below});
  }
  part = part.reshape(parameter.sizes());
  Tensor& sum = values_[ours];
  sum = sum.defined() ? sum + part : part;
  return true;
}

// Rows of the prefix (one token in every file), of the image, of queries.
void PublishedTokenizer::place_positions(const std::string& side, const Tensor& rows) {
  const int64_t queries = rows.size(0) - 1 - image_tokens_;
  if (!add(side + ".prefix", rows.narrow(0, 0, 1)))
    SIGMA_CHECK(kData, rows[0].abs().max().item<double>() == 0,
                "{}: expected a prefix without position", side);
  add(side + ".trunk.pos_embed", rows.narrow(0, 1, image_tokens_));
  if (queries > 0) add(side + ".queries", rows.narrow(0, 1 + image_tokens_, queries));
}

// fc3(gelu(fc1) fc2); a transposed convolution [C,I,1,P,P] with one bias a channel.
void PublishedTokenizer::place_vitok(std::string ours, const Tensor& value) {
  int64_t row = 0;
  Tensor part = value;
  if (ours.find(".fc2.") != std::string::npos) row = value.size(0);
  replace(ours, ".fc2.", ".fc1.");
  replace(ours, ".fc3.", ".fc2.");
  if (ours == "decoder.head.weight") part = value.squeeze(2).permute({2, 3, 1, 0}).flatten(0, 2);
  if (ours == "decoder.head.bias") part = value.repeat({config().patch_size * config().patch_size});
  // Without a place where positions are computed.
  const bool table = ours.ends_with("pos_embed") || ours == "encoder.queries";
  SIGMA_CHECK(kData, add(ours, part, row) || table, "weights: no parameter {}", ours);
}

void PublishedTokenizer::load(const GoldenFile& file) {
  const Naming& names = naming(source_);
  for (const std::string& name : file.names()) {
    if (!name.starts_with("weight.")) continue;
    const std::string ours = our_name(name.substr(7), names);
    if (std::any_of(names.unused.begin(), names.unused.end(),
                    [&](const auto& part) { return ours.find(part) != std::string::npos; }))
      continue;
    const Tensor value = file.get(name).requires_grad_();
    published_[name.substr(7)] = value;
    if (source_ == Source::kVitok) place_vitok(ours, value);
    else if (ours.ends_with("coder.pos_embed"))
      place_positions(ours.substr(0, ours.find('.')), value.reshape({-1, value.size(-1)}));
    else SIGMA_CHECK(kData, add(ours, value), "{}: no parameter {}", name, ours);
  }
  const torch::NoGradGuard no_grad;
  for (auto& [name, parameter] : ours_) {
    if (source_ == Source::kSemanticist && name.starts_with("decoder.")) continue;
    SIGMA_CHECK(kData, values_.contains(name), "weights: the file lacks {}", name);
    parameter.copy_(values_.at(name));
  }
}

void PublishedTokenizer::check_gradients(const GoldenFile& file, Report& report) {
  Tensor total = torch::zeros({}, torch::kDouble).to(device());
  for (const auto& [name, value] : values_) {
    const Tensor gradient = ours_.at(name).grad();
    if (gradient.defined()) total = total + (value * gradient).sum();
  }
  total.backward();
  for (const std::string& name : file.names()) {
    if (!name.starts_with("grad.") || name == "grad.images") continue;
    const Tensor expected = file.get(name);
    const auto leaf = published_.find(name.substr(5));
    const bool reached = leaf != published_.end() && leaf->second.grad().defined();
    report.by_norm(name, reached ? leaf->second.grad() : torch::zeros_like(expected), expected,
                   kRounded);
  }
}

Tensor PublishedTokenizer::patches(const Tensor& images) const {
  return patchify(images, config().patch_size);
}

Mask mask_of(const GoldenFile& file) {
  Mask mask{.hidden = file.get("input.mask").to(torch::kBool), .visible = {}};
  if (file.has("input.visible")) mask.visible = file.get("input.visible");
  return mask;
}

}  // namespace sigma::golden
