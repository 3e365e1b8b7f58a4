#include "sigma/tokenizer/tokenizer.h"

namespace sigma {

void PixelConfig::visit(ConfigVisitor& v) {
  v.choice("target", target, {"pixel", "norm_pixel"},
           "what the decoder predicts: pixels, or patches less their mean over their deviation");
  v.field("masked_only", masked_only, "only hidden patches count");
  v.field("conv", conv, "a 3x3 convolution on the pixels");
}

void HogConfig::visit(ConfigVisitor& v) {
  v.field("weight", weight, in(0, 1000), "weight of the loss on oriented gradients; 0 = none");
  v.field("bins", bins, in(2, 36), "directions");
  v.field("cells", cells, in(1, 8), "cells on a side of a patch");
  v.field("masked_only", masked_only, "only hidden patches count");
  v.field("hidden_size", hidden_size, in(8, 8192), "channels of the small decoder");
  v.field("depth", depth, in(1, 64), "blocks of the small decoder");
  v.field("num_heads", num_heads, in(1, 128), "attention heads of the small decoder");
  v.field("prefix", prefix, in(0, 16), "learned tokens before all others");
}

void LatentNormConfig::visit(ConfigVisitor& v) {
  v.field("images", images, in(100, 1e7),
          "training images that the latents' mean and deviation are measured on");
}

void TokenizerConfig::visit(ConfigVisitor& v) {
  v.field("patch_size", patch_size, in(1, 64), "side of a patch");
  v.field("down", down, "a linear map from the encoder to the latents");
  v.table("mask", mask, "patches that the encoder does not see in training");
  v.table("encoder", encoder, "images to latents");
  v.table("bottleneck", bottleneck, "the latents");
  v.table("nesting", nesting, "prefixes of the latents that mean something alone");
  v.table("decoder", decoder, "latents to images");
  v.table("pixel", pixel, "what the decoder is asked for");
  v.table("hog", hog, "oriented gradients as a second target");
  v.table("latent_norm", latent_norm, "normalisation of the latents for generators");
}

}  // namespace sigma
