#include "sigma/nn/rope.h"

#include <torch/types.h>

#include <algorithm>
#include <numeric>

#include "sigma/base/error.h"
#include "sigma/nn/linear.h"

namespace sigma {
namespace {

using torch::Tensor;

// Raster positions of a grid, float64 [N, axes]; axes that a 1-D or 2-D grid lacks are left out.
Tensor grid_positions(const Grid& grid) {
  const auto axis = [](int64_t size) { return torch::arange(size, torch::kDouble); };
  const auto mesh = torch::meshgrid({axis(grid.frames), axis(grid.height), axis(grid.width)}, "ij");
  std::vector<Tensor> columns;
  for (int a = 3 - grid.axes(); a < 3; ++a)
    columns.push_back(mesh[static_cast<size_t>(a)].reshape({-1}));
  return torch::stack(columns, -1);
}

// The grid tokens' table with rows that do not turn for the others.
RopeTable beside_others(const RopeTable& table, const TokenLayout& layout) {
  const auto pad = [&](const Tensor& t, double value) {
    return torch::constant_pad_nd(t, {0, 0, layout.before, layout.after}, value);
  };
  return {pad(table.cos, 1), pad(table.sin, 0)};
}

// Pairs [..,2] as complex numbers: one product is then the rotation. A view where the strides allow.
Tensor as_complex(const Tensor& pairs) {
  const auto strides = pairs.strides().slice(0, static_cast<size_t>(pairs.dim() - 1));
  const auto even = [](int64_t stride) { return stride % 2 == 0; };
  const bool fits = pairs.stride(-1) == 1 && even(pairs.storage_offset()) &&
                    std::all_of(strides.begin(), strides.end(), even);
  return torch::view_as_complex(fits ? pairs : pairs.contiguous());
}

}  // namespace

void RopeConfig::visit(ConfigVisitor& v) {
  v.choice("kind", kind, {"none", "axial", "sequence", "mixed"},
           "what queries and keys turn by: grid axes, index in the sequence, learned frequencies");
  v.field("theta", theta, above(1, 1e6), "base of the rotary frequencies");
  v.choice("pairing", pairing, {"interleaved", "half"}, "which channels form a pair");
  v.field("axis_dims", axis_dims, in(2, 8192),
          "rotated channels an axis (frames, rows, columns); [] = all, split evenly");
  v.field("columns_first", columns_first, "on two axes: the first channels turn by the column");
}

std::vector<int64_t> rope_axis_dims(const RopeConfig& config, int64_t head_dim, int axes) {
  std::vector<int64_t> dims = config.axis_dims;
  if (dims.empty()) {
    if (axes == 1) dims = {head_dim};
    if (axes == 2) dims = {head_dim / 2, head_dim / 2};
    if (axes == 3) {
      const int64_t side = 2 * (head_dim / 6);
      dims = {head_dim - 2 * side, side, side};
    }
  }
  SIGMA_CHECK(kUsage, static_cast<int>(dims.size()) == axes,
              "rope.axis_dims: expected {} numbers, one an axis, got {}", axes, dims.size());
  for (const int64_t d : dims) {
    SIGMA_CHECK(kUsage, d >= 2 && d % 2 == 0,
                "rope: expected an even number of channels on each axis, got {} of {}", d,
                head_dim);
  }
  const int64_t sum = std::accumulate(dims.begin(), dims.end(), int64_t{0});
  SIGMA_CHECK(kUsage, sum <= head_dim,
              "rope.axis_dims: expected a sum of at most head_dim = {}, got {}", head_dim, sum);
  return dims;
}

Rope::Rope(const RopeConfig& config, int64_t head_dim, const TokenLayout& layout,
           torch::ScalarType dtype, torch::Device device)
    : axis_dims_(
          rope_axis_dims(config, head_dim, config.kind == "sequence" ? 1 : layout.grid.axes())),
      theta_(config.theta),
      interleaved_(config.pairing == "interleaved"),
      dtype_(dtype),
      device_(device) {
  if (config.kind == "sequence") {
    SIGMA_CHECK(kUsage, !layout.visible.defined(),
                "rope: kind sequence needs all tokens of the grid; expected no dropped ones");
    table_ = at(torch::arange(layout.tokens(), torch::kDouble).unsqueeze(1));
    return;
  }
  Tensor positions = grid_positions(layout.grid);
  if (config.columns_first && layout.grid.axes() == 2) positions = positions.flip(1);
  if (layout.visible.defined())
    positions = positions.index({layout.visible.cpu()});  // [B, n, axes]
  table_ = beside_others(at(positions), layout);
}

Rope::Rope(const Tensor& frequencies, bool interleaved, const TokenLayout& layout)
    : theta_(0),
      interleaved_(interleaved),
      dtype_(frequencies.scalar_type()),
      device_(frequencies.device()) {
  SIGMA_CHECK(kUsage, layout.grid.frames == 1, "rope: kind mixed expects one frame, got {}",
              layout.grid.frames);
  const int64_t width = layout.grid.width;
  const auto whole = frequencies.options().dtype(torch::kInt64);
  const Tensor token = (layout.visible.defined() ? layout.visible.unsqueeze(1)  // [B, 1, n]
                                                 : torch::arange(layout.grid.size(), whole))
                           .unsqueeze(-1);
  const Tensor angle = token.remainder(width) * frequencies[0].unsqueeze(1) +
                       token.div(width, "floor") * frequencies[1].unsqueeze(1);
  table_ = beside_others({angle.cos(), angle.sin()}, layout);
}

RopeTable Rope::at(const Tensor& positions) const {
  SIGMA_CHECK(kUsage, !axis_dims_.empty(), "rope: kind mixed has no angles beside the grid's");
  SIGMA_CHECK(kUsage, positions.size(-1) == static_cast<int64_t>(axis_dims_.size()),
              "rope: expected positions with {} axes, got {}", axis_dims_.size(),
              positions.size(-1));
  const Tensor p = positions.to(torch::kDouble);
  std::vector<Tensor> angles;
  for (size_t a = 0; a < axis_dims_.size(); ++a) {
    const auto d = static_cast<double>(axis_dims_[a]);
    const Tensor frequency =
        torch::pow(theta_, torch::arange(axis_dims_[a] / 2, p.options()) * (-2 / d));
    angles.push_back(p.index({"...", static_cast<int64_t>(a)}).unsqueeze(-1) * frequency);
  }
  Tensor angle = torch::cat(angles, -1);
  if (angle.dim() == 3) angle = angle.unsqueeze(1);
  const auto dtype = dtype_ == torch::kDouble ? torch::kDouble : torch::kFloat;
  return {angle.cos().to(device_, dtype), angle.sin().to(device_, dtype)};
}

Tensor Rope::rotate(const Tensor& x, const RopeTable& table) const {
  SIGMA_CHECK(kUsage, table.cos.size(-2) == x.size(2),
              "rope: expected a table of {} tokens, got {}", x.size(2), table.cos.size(-2));
  return rotate_pairs(x, table.cos, table.sin, interleaved_);
}

Tensor rotate_pairs(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved) {
  const int64_t rotary = 2 * cos.size(-1);
  const Tensor wide = at_least_float(x);
  const Tensor part = wide.narrow(-1, 0, rotary);
  Tensor rotated;
  if (interleaved) {
    const Tensor pairs = as_complex(part.unflatten(-1, {rotary / 2, 2}));
    rotated = torch::view_as_real(pairs * torch::complex(cos, sin)).flatten(-2);
  } else {
    const Tensor a = part.narrow(-1, 0, rotary / 2);
    const Tensor b = part.narrow(-1, rotary / 2, rotary / 2);
    rotated = torch::cat({a * cos - b * sin, a * sin + b * cos}, -1);
  }
  if (rotary < x.size(-1))
    rotated = torch::cat({rotated, wide.narrow(-1, rotary, x.size(-1) - rotary)}, -1);
  return rotated.to(x.scalar_type());
}

}  // namespace sigma
