// Where the tokens of a sequence stand: [before | grid in raster order | after], and who may see
// whom.
#pragma once

#include <torch/types.h>

#include <cstdint>

namespace sigma {

/// Frames, rows, columns; a 1-D sequence is {1, 1, N}.
struct Grid {
  int64_t frames = 1;
  int64_t height = 1;
  int64_t width = 1;
  int64_t size() const { return frames * height * width; }
  int axes() const { return frames > 1 ? 3 : height > 1 ? 2 : 1; }
  bool operator==(const Grid&) const = default;
};

/// The only home of causality.
enum class Pattern {
  kFull,         // every token sees every token
  kCausal,       // a token sees itself and the tokens before it
  kCausalAfter,  // before and grid tokens see each other; after-token a sees these and after-tokens
                 // b <= a
};

struct TokenLayout {
  int64_t before = 0;  // class and prefix tokens
  Grid grid;
  int64_t after = 0;  // latent tokens
  Pattern pattern = Pattern::kFull;
  /// Grid tokens that are there [B, n] int64 (masked encoders); undefined: all.
  torch::Tensor visible;

  int64_t grid_tokens() const { return visible.defined() ? visible.size(1) : grid.size(); }
  int64_t tokens() const { return before + grid_tokens() + after; }
};

}  // namespace sigma
