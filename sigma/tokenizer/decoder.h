// The decoder of a tokenizer: latent tokens -> a prediction for every patch.
//
//   u = up(c) (+ positions);  m = image queries
//   append    s = [prefix | m + positions | u], or [prefix | u | m + positions]  (TiTok, MAETok,
//             ViTok with latents_first)
//   in_place  s = [prefix | m + positions], u written into m where the patch was seen (MAE; ViTok
//             where every patch has a latent)
//   prediction = head(norm(trunk(s))[image tokens])
//
// `condition` latent_tokens: c itself modulates the rows of the latent tokens in every block, as in
// MAETok's published decoder (sigma/trunk/trunk.h). `prefix` may be the encoder's own (MAE).
#pragma once

#include <torch/types.h>

#include <memory>
#include <string>

#include "sigma/nn/linear.h"
#include "sigma/nn/output.h"
#include "sigma/tokenizer/masking.h"
#include "sigma/trunk/trunk.h"

namespace sigma {

struct DecoderConfig {
  std::string layout = "append";       // append | in_place
  std::string order = "image_first";   // image_first | latents_first
  int64_t prefix = 0;                  // learned tokens before all others
  bool encoder_prefix = false;         // the encoder's prefix, through `up`, instead
  std::string image_query = "shared";  // shared | per_position | zero
  bool latent_positions = true;        // append: learned, added to up(c)
  std::string condition = "none";      // none | latent_tokens
  double scale_offset = 0;             // latent_tokens: what the scale starts from
  TrunkConfig trunk = {.position = "learned"};
  void visit(ConfigVisitor& v);
};

class Decoder : public Module {
 public:
  /// `latents` L (0: as many as patches that are seen), `channels` Z, `encoder_width` of its prefix
  /// tokens; `outputs` numbers a patch. Errors: kUsage.
  Decoder(const DecoderConfig& config, const Grid& grid, int64_t latents, int64_t channels,
          int64_t encoder_prefix, int64_t outputs);
  /// c [B,L,Z]; `mask` of the encoder's pass (in_place); prefix [B,p,Z] in the latents' channels, or
  /// undefined -> value [B,N,outputs], at least float32.
  Output forward(const torch::Tensor& c, const Mask& mask, const torch::Tensor& prefix,
                 const Context& context);
  double flops() const;

 private:
  torch::Tensor image_tokens(int64_t batch, const torch::Tensor& u, const Mask& mask) const;

  DecoderConfig config_;
  TokenLayout layout_;
  int64_t latents_;  // tokens that up_ takes; in place: those of the whole grid
  std::shared_ptr<Linear> up_;
  torch::Tensor image_query_;       // [1,Cd] or [N,Cd]
  torch::Tensor latent_positions_;  // [L,Cd]
  torch::Tensor prefix_;            // [prefix,Cd]
  std::shared_ptr<Trunk> trunk_;
  std::shared_ptr<LayerNorm> norm_;  // without affine under a condition
  std::shared_ptr<Linear> head_;
};

}  // namespace sigma
