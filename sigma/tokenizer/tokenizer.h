// Image tokenizers: images -> a few latent tokens -> images. The plain autoencoder with a linear
// bottleneck.
//
//   encode   h = norm(trunk([patch_embed(image) + positions | queries]))[queries]
//            c = down(h) [B,L,Z],  z = (c - mean) / std
//   decode   c = z std + mean
//            [image query + positions | up(c) + latent positions]
//            -> trunk -> norm -> head -> unpatchify
//
// L queries read the image (TiTok, arXiv 2406.07550, section 3.1; MAETok, arXiv 2502.03444, section
// 3). mean and std are those of the latents' channels over the training set (LatentNorm), so that a
// generator sees unit variance; they are part of the weights and are measured once, before the last
// checkpoint. Not supported here: masking, quantisation, a KL term.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "sigma/base/context.h"
#include "sigma/nn/linear.h"
#include "sigma/nn/output.h"
#include "sigma/tokenizer/bottleneck.h"
#include "sigma/trunk/trunk.h"

namespace sigma {

struct EncoderConfig {
  int64_t queries = 16;  // L
  TrunkConfig trunk = {.position = "learned"};
  void visit(ConfigVisitor& v);
};

struct DecoderConfig {
  TrunkConfig trunk = {.position = "learned"};
  void visit(ConfigVisitor& v);
};

struct LatentNormConfig {
  int64_t images = 10000;
  void visit(ConfigVisitor& v);
};

struct TokenizerConfig {
  int64_t patch_size = 4;
  EncoderConfig encoder;
  BottleneckConfig bottleneck;
  DecoderConfig decoder;
  LatentNormConfig latent_norm;
  void visit(ConfigVisitor& v);
};

class Tokenizer : public Module {
 public:
  /// image_shape [C,H,W]. Errors: kUsage.
  Tokenizer(const TokenizerConfig& config, const std::vector<int64_t>& image_shape);

  /// images [B,C,H,W] in [-1,1] -> normalised latents [B,L,Z], float32.
  torch::Tensor encode(const torch::Tensor& images, const Context& context);
  /// Normalised latents -> images (not clamped), float32.
  torch::Tensor decode(const torch::Tensor& latents, const Context& context);
  /// Reconstruction in `value`, and the losses of training: "pixel", the mean squared error.
  Output forward(const torch::Tensor& images, const Context& context);

  /// Sets mean and std from `batches` of raw latents (encode_raw), float64. Errors: kUsage (fewer
  /// than 10 Z tokens).
  void fit_latent_norm(const std::vector<torch::Tensor>& batches);
  /// Latents before normalisation.
  Output encode_raw(const torch::Tensor& images, const Context& context);

  std::vector<int64_t> latent_shape() const {
    return {config_.encoder.queries, config_.bottleneck.dim};
  }
  /// Forward operations for one image: encoder and decoder.
  double flops() const;

 private:
  Output decode_raw(const torch::Tensor& latents, const Context& context);

  TokenizerConfig config_;
  std::vector<int64_t> image_shape_;
  TokenLayout layout_;
  // encoder
  std::shared_ptr<Linear> patch_embed_;
  torch::Tensor queries_;
  std::shared_ptr<Trunk> encoder_trunk_;
  std::shared_ptr<LayerNorm> encoder_norm_;
  std::shared_ptr<Linear> down_;
  // decoder
  std::shared_ptr<Linear> up_;
  torch::Tensor image_query_;
  torch::Tensor latent_positions_;
  std::shared_ptr<Trunk> decoder_trunk_;
  std::shared_ptr<LayerNorm> decoder_norm_;
  std::shared_ptr<Linear> head_;
  // latent norm, float64 [Z]
  torch::Tensor latent_mean_;
  torch::Tensor latent_std_;
};

}  // namespace sigma
