// Rotary position embeddings on 1, 2 or 3 axes (RoFormer, arXiv 2104.09864; axial and mixed form as
// in arXiv 2403.13298).
//
//   axial     angle of axis a, pair k < d_a/2:  w = p_a theta^(-2k/d_a);  axes: frames, rows, columns
//   sequence  one axis: the token's index in [before | grid | after]
//   mixed     w = fx[h,k] column + fy[h,k] row, frequencies learned a layer and head; grid tokens only
//   a pair (x, y) of channels becomes (x cos w - y sin w, x sin w + y cos w)
//   pairs: interleaved (2k, 2k+1) or half (k, k + R/2),  R = sum of d_a <= head_dim
//
// p_a is the position on axis a, d_a its channels; channels beyond R are kept. Angles are computed
// in float64 (in float32 they are off by 1.7e-3 at position 32,767), tables kept in float32
// (float64 for float64 inputs), the rotation done in at least float32 and cast back. Not supported
// here: scaled positions, one theta an axis.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "sigma/base/config.h"
#include "sigma/nn/token_layout.h"

namespace sigma {

struct RopeConfig {
  std::string kind = "none";  // none | axial | sequence | mixed
  double theta = 10000;
  std::string pairing = "interleaved";  // interleaved | half
  std::vector<int64_t> axis_dims;  // channels an axis; empty: by the number of axes (D | D/2, D/2 |
                                   // rest, 2[D/6] twice)
  bool columns_first = false;      // axial in two axes: the first channels turn by the column
  void visit(ConfigVisitor& v);
};

/// cos and sin [N, R/2], [B, 1, N, R/2] or [H, N, R/2]: broadcast to [B, H, N, R/2].
struct RopeTable {
  torch::Tensor cos;
  torch::Tensor sin;
};

/// Channels an axis for `axes` axes of a head of `head_dim` channels. Errors: kUsage (odd axis, sum
/// above head_dim, ...).
std::vector<int64_t> rope_axis_dims(const RopeConfig& config, int64_t head_dim, int axes);

class Rope {
 public:
  /// Tables for the tokens of `layout`: grid tokens at their raster positions, the others not
  /// rotated.
  Rope(const RopeConfig& config, int64_t head_dim, const TokenLayout& layout,
       torch::ScalarType dtype, torch::Device device);
  /// Mixed: frequencies [2, H, D/2] (columns, rows) of a layer; the tables have a gradient.
  Rope(const torch::Tensor& frequencies, bool interleaved, const TokenLayout& layout);

  const RopeTable& table() const { return table_; }
  bool interleaved() const { return interleaved_; }
  /// Tables for `positions` [N, axes] or [B, N, axes] (numbers, not only whole ones), in the order
  /// of the axes. Errors: kUsage (mixed).
  RopeTable at(const torch::Tensor& positions) const;
  /// x [B, H, N, D] rotated by `table`.
  torch::Tensor rotate(const torch::Tensor& x, const RopeTable& table) const;

 private:
  std::vector<int64_t> axis_dims_;
  double theta_;
  bool interleaved_;
  torch::ScalarType dtype_;
  torch::Device device_;
  RopeTable table_;
};

/// The definition: x [B, H, N, D] rotated by cos, sin that broadcast to [B, H, N, R/2].
torch::Tensor rotate_pairs(const torch::Tensor& x, const torch::Tensor& cos,
                           const torch::Tensor& sin, bool interleaved);

}  // namespace sigma
