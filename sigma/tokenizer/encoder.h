// The encoder of a tokenizer: patches -> latent tokens, by queries that read the image (TiTok, arXiv
// 2406.07550, section 3.1; MAETok, arXiv 2502.03444, section 3), or the image tokens themselves
// (MAE, arXiv 2111.06377; ViTok, arXiv 2501.09755).
//
//   x = patch_embed(patches);  replace: x[hidden] = mask token;  drop: x = x[visible]
//   s = [prefix | x + positions | queries], or [prefix | queries | x + positions]
//   h = norm(trunk(s))[queries], or of the image tokens where there are none
//
// The queries and the prefix are learned with their positions; ViTok's queries are a fixed sin-cos
// table. `causal`: a query sees the image and the queries before it (Semanticist).
#pragma once

#include <torch/types.h>

#include <memory>
#include <string>

#include "sigma/nn/linear.h"
#include "sigma/nn/output.h"
#include "sigma/tokenizer/masking.h"
#include "sigma/trunk/trunk.h"

namespace sigma {

struct EncoderConfig {
  int64_t queries = 16;                // L; 0: the image tokens are the latents
  int64_t prefix = 0;                  // tokens before all others
  std::string order = "image_first";   // image_first | latents_first
  std::string query_kind = "learned";  // learned | sincos
  bool causal = false;
  TrunkConfig trunk = {.position = "learned"};
  void visit(ConfigVisitor& v);
};

struct EncoderOutput : Output {  // value: latents before `down` [B,L,C]
  torch::Tensor prefix;          // [B, prefix, C]
};

class Encoder : public Module {
 public:
  /// `mask_policy`: of MaskConfig. Errors: kUsage.
  Encoder(const EncoderConfig& config, const std::string& mask_policy, const Grid& grid,
          int64_t patch_width);
  /// patches [B,N,patch_width]; an undefined mask hides nothing, another is on their device.
  EncoderOutput forward(const torch::Tensor& patches, const Mask& mask, const Context& context);
  /// Forward operations for one image of which nothing is dropped.
  double flops() const;

 private:
  EncoderConfig config_;
  TokenLayout layout_;
  bool drops_;
  std::shared_ptr<Linear> patch_embed_;
  torch::Tensor mask_token_;  // [C], policy replace
  torch::Tensor prefix_;      // [prefix,C]
  torch::Tensor queries_;     // [L,C]
  std::shared_ptr<Trunk> trunk_;
  std::shared_ptr<LayerNorm> norm_;
};

}  // namespace sigma
