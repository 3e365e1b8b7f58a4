#include "sigma/trunk/positions.h"

#include <torch/types.h>

#include <cmath>

#include "sigma/base/error.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr double kBase = 10000;

// [sin | cos] of p w_i, w_i = kBase^(-i/last).
Tensor axis_code(const Tensor& position, int64_t width, double last) {
  const Tensor omega = torch::pow(kBase, torch::arange(width / 2, torch::kDouble) / -last);
  const Tensor angle = position.unsqueeze(1) * omega;
  return torch::cat({angle.sin(), angle.cos()}, 1);
}

// `inclusive`: the last frequency is 1/kBase itself.
Tensor codes(const Grid& grid, int64_t width, int axes, bool inclusive) {
  SIGMA_CHECK(kUsage, width % (2 * axes) == 0,
              "position: sin-cos on {} axes needs a width divisible by {}, got {}", axes, 2 * axes,
              width);
  const int64_t part = width / axes;
  const double last = static_cast<double>(part / 2) - (inclusive ? 1 : 0);
  if (axes == 1) return axis_code(torch::arange(grid.size(), torch::kDouble), part, last);
  SIGMA_CHECK(kUsage, grid.frames == 1, "position: sincos2d expects one frame, got {}",
              grid.frames);
  const Tensor row = torch::arange(grid.height, torch::kDouble).repeat_interleave(grid.width);
  const Tensor column = torch::arange(grid.width, torch::kDouble).repeat({grid.height});
  return torch::cat({axis_code(column, part, last), axis_code(row, part, last)}, 1);
}

}  // namespace

Tensor sincos_positions(const Grid& grid, int64_t width, int axes) {
  return codes(grid, width, axes, false);
}

Tensor sincos_bv(const Grid& grid, int64_t width, int axes) {
  return codes(grid, width, axes, true);
}

Tensor time_features(const Tensor& v, int64_t half) {
  const Tensor frequency = torch::exp(torch::arange(half, v.options().dtype(torch::kDouble)) *
                                      (-std::log(kBase) / static_cast<double>(half)));
  const Tensor angle = v.to(torch::kDouble).unsqueeze(1) * frequency;
  return torch::cat({angle.cos(), angle.sin()}, 1);
}

}  // namespace sigma
