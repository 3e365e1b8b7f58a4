// Image tokenizers: images -> a few latent tokens -> images. MAETok, TiTok, ViTok, Semanticist and
// MAE are settings of this one model (recipes/presets).
//
//   encode   e = down(encoder(patches)) [B,L,Zin];  c = bottleneck(e) [B,L,Z];  z = (c - mean) / std
//   decode   c = z std + mean;  image = unpatchify(decoder(nesting(c, k)))
//   losses   pixel: mean squared error of pixels, or of patches that are normalised (MAE)
//            hog: of oriented gradients, by a small decoder of its own on the same c (MAETok)
//            each over all patches, or over the hidden ones; and those of the bottleneck
//
// mean and std are those of the latents' channels over the training set (LatentNorm), so that a
// generator sees unit variance; they are part of the weights and are measured once, before the last
// checkpoint. Masks belong to training: encode and decode see every patch. Files: encoder.h,
// decoder.h, bottleneck.h, masking.h, nesting.h, hog.h.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "sigma/base/context.h"
#include "sigma/nn/linear.h"
#include "sigma/nn/output.h"
#include "sigma/tokenizer/bottleneck.h"
#include "sigma/tokenizer/decoder.h"
#include "sigma/tokenizer/encoder.h"
#include "sigma/tokenizer/masking.h"
#include "sigma/tokenizer/nesting.h"

namespace sigma {

struct PixelConfig {
  std::string target = "pixel";  // pixel | norm_pixel
  bool masked_only = false;
  bool conv = false;  // a 3x3 convolution on the pixels (TiTok)
  void visit(ConfigVisitor& v);
};

struct HogConfig {
  double weight = 0;  // 0: no such head
  int64_t bins = 9;
  int64_t cells = 2;
  bool masked_only = true;
  int64_t hidden_size = 64;
  int64_t depth = 1;
  int64_t num_heads = 2;
  int64_t prefix = 0;
  void visit(ConfigVisitor& v);
};

struct LatentNormConfig {
  int64_t images = 10000;
  void visit(ConfigVisitor& v);
};

struct TokenizerConfig {
  int64_t patch_size = 4;
  bool down = true;  // false: latents have the encoder's channels
  MaskConfig mask;
  EncoderConfig encoder;
  BottleneckConfig bottleneck;
  NestingConfig nesting;
  DecoderConfig decoder;
  PixelConfig pixel;
  HogConfig hog;
  LatentNormConfig latent_norm;
  void visit(ConfigVisitor& v);
};

class Tokenizer : public Module {
 public:
  /// image_shape [C,H,W]. Errors: kUsage.
  Tokenizer(const TokenizerConfig& config, const std::vector<int64_t>& image_shape);

  /// images [B,C,H,W] in [-1,1] -> normalised latents [B,L,Z], float32.
  torch::Tensor encode(const torch::Tensor& images, const Context& context);
  /// Normalised latents -> images (not clamped), float32. `keep`: the first tokens that count, all
  /// if negative. Errors: kUsage (keep out of range or without nesting; a target that is no image).
  torch::Tensor decode(const torch::Tensor& latents, const Context& context, int64_t keep = -1);
  /// A training pass: the reconstruction in `value`, with the mask and the prefix that the context
  /// draws; a target of normalised patches is shown with the image's own statistics.
  Output forward(const torch::Tensor& images, const Context& context);
  /// The mask of forward, on the CPU; undefined tensors without a policy.
  Mask mask_of(const Context& context) const;

  /// Latents before normalisation.
  Coded encode_raw(const torch::Tensor& images, const Context& context);
  /// Latents of codes, normalised (vq). indices [B,L]. Errors: kUsage (an index out of range).
  torch::Tensor latents_of(const torch::Tensor& indices) const;
  /// Sets mean and std from `batches` of raw latents (encode_raw), float64. Errors: kUsage (fewer
  /// than 10 Z tokens).
  void fit_latent_norm(const std::vector<torch::Tensor>& batches);

  std::vector<int64_t> latent_shape() const;
  /// Whether anything that makes the latents has gradients: in a stage it may be frozen.
  bool trains_latents() const;
  const TokenizerConfig& config() const { return config_; }
  const Bottleneck& bottleneck() const { return *bottleneck_; }
  /// Forward operations for one image: encoder and decoder.
  double flops() const;

  /// The parts, for tests and for looking.
  Encoder& encoder() { return *encoder_; }
  Decoder& decoder() { return *decoder_; }

 private:
  struct Latents {
    Coded coded;
    torch::Tensor prefix;  // of the encoder, where the decoder wants it
  };
  Latents code(const torch::Tensor& images, const Mask& mask, const Context& context, Output& out);
  torch::Tensor to_image(const torch::Tensor& prediction) const;
  torch::Tensor patches(const torch::Tensor& images) const;
  torch::Tensor pixel_loss(torch::Tensor& image, const torch::Tensor& images,
                           const Mask& mask) const;
  torch::Tensor normalised(const torch::Tensor& raw) const;

  TokenizerConfig config_;
  std::vector<int64_t> image_shape_;
  Grid grid_;
  std::shared_ptr<Encoder> encoder_;
  std::shared_ptr<Linear> down_;
  std::shared_ptr<Bottleneck> bottleneck_;
  std::shared_ptr<Nesting> nesting_;
  std::shared_ptr<Decoder> decoder_;
  torch::Tensor conv_weight_, conv_bias_;
  std::shared_ptr<Decoder> hog_;
  // latent norm, float64 [Z]
  torch::Tensor latent_mean_;
  torch::Tensor latent_std_;
};

}  // namespace sigma
