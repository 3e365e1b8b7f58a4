// One strip of queries of multi-token attention: the steps from scores to probabilities and back,
// for the heads that mix. Rows and columns of its maps are places (multi_token.h). Torch-free.
#pragma once

#include <cstdint>
#include <vector>

#include "sigma/attention/kernels/multi_token.h"
#include "sigma/attention/kernels/score_maps.h"

namespace sigma::kernels {

constexpr int64_t kPanel = 64;  // columns of a product

// How far a convolution reaches: out[i] needs in[i - back .. i + ahead].
struct Reach {
  int64_t back = 0, ahead = 0;
};
Reach query_reach(const MapConvolution& c);

/// Rows that a convolution needs to make `rows`; turned: that its transpose needs.
inline Rows needed(Rows rows, Reach r) { return {rows.first - r.back, rows.last + r.ahead}; }
inline Rows turned(Rows rows, Reach r) { return {rows.first - r.ahead, rows.last + r.back}; }

/// The taps of one head's kernel, for tokens with neighbours on both axes, one, or none.
class Taps {
 public:
  Taps(const MapConvolution& c, int64_t head, int64_t stride, bool transposed);
  const std::vector<Tap>& taps(bool query_alone, bool key_alone) const {
    return taps_[2 * query_alone + key_alone];
  }
  const Stencil& stencil(bool query_alone, bool key_alone) const {
    return stencils_[2 * query_alone + key_alone];
  }
  /// The same taps by key step, for the gradient of the kernel.
  const std::vector<KeyTaps>& by_key(bool query_alone, bool key_alone) const {
    return by_key_[2 * query_alone + key_alone];
  }

 private:
  std::vector<Tap> taps_[4];
  std::vector<KeyTaps> by_key_[4];
  Stencil stencils_[4];
};

using Maps = std::vector<Map>;  // one a head

/// The heads [first_head, first_head + work.heads) of image b.
class Strip {
 public:
  Strip(const MultiToken& a, const MultiTokenWork& work, int64_t b, int64_t first_head);

  /// Empty maps for a strip and what two convolutions reach around it.
  Maps maps(Reach r1, Reach r2 = {}) const;
  std::vector<Taps> taps(const MapConvolution& c, bool transposed) const;
  /// Of scale * x.
  std::vector<float> panels(const float* x, int64_t depth, float scale) const;
  /// First row of a head in [B,H,places].
  int64_t at(int64_t h) const { return (b_ * a_.H + first_head_ + h) * a_.places; }
  /// Keys from here on are hidden from all rows; a multiple of kPanel.
  int64_t columns(Rows rows) const;
  /// The same of one row; a multiple of 16.
  int64_t columns_of_row(int64_t i) const;

  /// out = X Y^T, hidden keys 0; `panels` of Y.
  void scores(const float* x, const std::vector<float>& panels, int64_t depth, Rows rows,
              Maps& out) const;
  /// Zeros at keys that the rows must not see.
  void hide(Rows rows, Maps& maps) const;
  void convolve(const std::vector<Taps>& taps, const Maps& in, Rows rows, Maps& out) const;
  /// sums [heads, taps] += the gradient of a kernel from `grad` of its outputs.
  void add_kernel_grad(const std::vector<Taps>& taps, const Maps& in, const Maps& grad, Rows rows,
                       int64_t taps_a_head, double* sums) const;
  /// Mixes the heads of every group in place; transposed: for gradients.
  void mix_heads(const MapConvolution& c, Rows rows, Maps& maps, bool transposed) const;
  /// sums [heads, c.heads] += the gradient of the mixing weights.
  void add_mix_grad(const MapConvolution& c, const Maps& in, const Maps& grad, Rows rows,
                    double* sums) const;
  /// P in place of mixed scores; 0 in places without a token. Writes lse (or null) of `rows`.
  void probabilities(Maps& maps, float* lse, Rows rows) const;
  /// grad of scores in place of grad of probabilities P.
  void softmax_grads(const Maps& P, Maps& grad) const;

 private:
  // Rows [i, i + rows) of a convolution.
  void convolve_rows(const Taps& taps, const Map& in, int64_t i, int64_t rows, Map& out) const;
  void hide_row(int64_t i, Map& map) const;
  // The part of `rows` that exists.
  Rows inside(Rows rows) const;

  const MultiToken& a_;
  int64_t b_, first_head_, heads_, margin_, most_;
};

}  // namespace sigma::kernels
