// The trunk: blocks of (attention) x (mlp) x (conditioning), shared by every network here.
//
//   conditioning none:        x += attn(norm1(x))
//                             x += mlp(norm2(x))
//   conditioning adaln_zero:  x += g1 attn(norm1(x) (1 + c1) + h1)
//                             x += g2 mlp(norm2(x) (1 + c2) + h2)
//                             (h1, c1, g1, h2, c2, g2) = Linear(silu(c)), starting at zero
//                             (DiT, arXiv 2212.09748, section 3.2)
//   conditioning latent_tokens: as none, but of the norms' outputs n (without affine) the rows of the
//                             latent tokens become n (offset + c) + h,
//                             (h1, c1, h2, c2) = Linear(silu(latent)), starting at zero
//                             (the decoder of MAETok, in its published code)
//
// `layer_scale`: a learned factor a channel on both branches (CaiT, arXiv 2103.17239).
//
// x [B,N,C] is the residual stream, at least float32; the outputs of norms are cast to the compute
// dtype of the pass. The trunk owns positions: additive ones are added to the grid tokens here,
// rotary tables are made once per layout and passed down.
#pragma once

#include <memory>
#include <vector>

#include "sigma/base/context.h"
#include "sigma/nn/attention.h"
#include "sigma/nn/linear.h"
#include "sigma/nn/mlp.h"
#include "sigma/nn/output.h"
#include "sigma/trunk/config.h"

namespace sigma {

enum class Conditioning { kNone, kAdaLnZero, kLatentTokens };

/// Of kLatentTokens: channels of a latent token, and what its scale starts from.
struct LatentCondition {
  int64_t dim = 0;
  double scale_offset = 0;
};

class Block : public Module {
 public:
  /// `config` for width, norms and layer scale.
  Block(const TrunkConfig& config, std::shared_ptr<Attention> attention, std::shared_ptr<Mlp> mlp,
        Conditioning conditioning, const LatentCondition& latents = {});
  /// `c` is silu(condition): [B,C]; [B,L,Z] of the L last tokens for kLatentTokens; undefined for
  /// kNone.
  Output forward(const torch::Tensor& x, const torch::Tensor& c, const TokenLayout& layout,
                 const Rope* rope, const Context& context);
  double flops(const TokenLayout& layout) const;

 private:
  Output adaptive(const torch::Tensor& x, const torch::Tensor& c, const TokenLayout& layout,
                  const Rope* rope, const Context& context);

  double eps_;
  LatentCondition latents_;
  torch::Tensor scale1_;  // layer scale [C]
  torch::Tensor scale2_;
  std::shared_ptr<LayerNorm> norm1_;
  std::shared_ptr<LayerNorm> norm2_;
  std::shared_ptr<Attention> attn_;
  std::shared_ptr<Mlp> mlp_;
  std::shared_ptr<Linear> modulation_;
};

/// Rows [.., rows - L, ..) of n [B,N,C] stay, the L last become n (offset + scale) + shift, both
/// [B,L,C].
torch::Tensor modulate_latents(const torch::Tensor& n, const torch::Tensor& shift,
                               const torch::Tensor& scale, double offset);

class Trunk : public Module {
 public:
  /// `grid`: of the tokens; learned positions have its size.
  Trunk(const TrunkConfig& config, const Grid& grid, Conditioning conditioning,
        const LatentCondition& latents = {});
  /// x [B,N,C], N = layout.tokens(); condition as in Block, before its silu. The caller norms the
  /// result.
  Output forward(const torch::Tensor& x, const TokenLayout& layout, const torch::Tensor& condition,
                 const Context& context);
  double flops(const TokenLayout& layout) const;
  const TrunkConfig& config() const { return config_; }

 private:
  torch::Tensor add_positions(const torch::Tensor& x, const TokenLayout& layout);
  const Rope* rope_for(const TokenLayout& layout, const torch::Tensor& like);
  torch::Tensor fixed_positions() const;

  TrunkConfig config_;
  Grid grid_;
  torch::Tensor pos_embed_;   // learned [1,N,C]
  torch::Tensor rope_freqs_;  // rope.kind mixed [2, depth, heads, D/2]
  std::shared_ptr<LayerNorm> pre_norm_;
  std::vector<std::shared_ptr<Block>> blocks_;

  // Made once per shape, dtype and device.
  torch::Tensor sincos_;
  std::unique_ptr<Rope> rope_;
  TokenLayout rope_layout_;
  torch::ScalarType rope_dtype_ = torch::kFloat;
};

}  // namespace sigma
