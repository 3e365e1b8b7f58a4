#include "sigma/trunk/positions.h"

#include <torch/types.h>

#include <cmath>

#include "sigma/base/error.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr double kBase = 10000;

Tensor axis_code(const Tensor& position, int64_t width) {
  const Tensor omega = torch::pow(
      kBase, torch::arange(width / 2, torch::kDouble) * (-2.0 / static_cast<double>(width)));
  const Tensor angle = position.unsqueeze(1) * omega;
  return torch::cat({angle.sin(), angle.cos()}, 1);
}

}  // namespace

Tensor sincos_positions(const Grid& grid, int64_t width, int axes) {
  SIGMA_CHECK(kUsage, width % (2 * axes) == 0,
              "position: sin-cos on {} axes needs a width divisible by {}, got {}", axes, 2 * axes,
              width);
  if (axes == 1) return axis_code(torch::arange(grid.size(), torch::kDouble), width);
  SIGMA_CHECK(kUsage, grid.frames == 1, "position: sincos2d expects one frame, got {}",
              grid.frames);
  const Tensor row = torch::arange(grid.height, torch::kDouble).repeat_interleave(grid.width);
  const Tensor column = torch::arange(grid.width, torch::kDouble).repeat({grid.height});
  return torch::cat({axis_code(column, width / 2), axis_code(row, width / 2)}, 1);
}

Tensor time_features(const Tensor& v, int64_t half) {
  const Tensor frequency = torch::exp(torch::arange(half, v.options().dtype(torch::kDouble)) *
                                      (-std::log(kBase) / static_cast<double>(half)));
  const Tensor angle = v.to(torch::kDouble).unsqueeze(1) * frequency;
  return torch::cat({angle.cos(), angle.sin()}, 1);
}

}  // namespace sigma
