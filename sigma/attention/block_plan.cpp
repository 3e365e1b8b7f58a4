#include "sigma/attention/block_plan.h"

#include <torch/types.h>

#include <algorithm>

#include "sigma/base/error.h"

namespace sigma {
namespace {

using torch::Tensor;

int64_t parts(int64_t size, int64_t side) { return (size + side - 1) / side; }

}  // namespace

Grid box_of_sides(const std::string& key, const std::vector<int64_t>& sides, int axes) {
  SIGMA_CHECK(kUsage, std::cmp_equal(sides.size(), axes),
              "{}: expected {} sides, one an axis of the grid, got {}", key, axes, sides.size());
  Grid box{.frames = 1, .height = 1, .width = sides.back()};
  if (axes >= 2) box.height = sides[sides.size() - 2];
  if (axes == 3) box.frames = sides[0];
  return box;
}

BlockGeometry block_geometry(const TokenLayout& layout, const Grid& block) {
  SIGMA_CHECK(kUsage, block.frames >= 1 && block.height >= 1 && block.width >= 1,
              "block: expected sides of at least 1, got {} x {} x {}", block.frames, block.height,
              block.width);
  SIGMA_CHECK(kUsage, !layout.visible.defined(),
              "sparse attention: expected all grid tokens, got a masked layout");
  BlockGeometry out{.grid = layout.grid, .block = block};
  const Grid& grid = layout.grid;
  out.cubes = {.frames = parts(grid.frames, block.frames),
               .height = parts(grid.height, block.height),
               .width = parts(grid.width, block.width)};
  std::vector<int64_t> order;
  std::vector<int64_t> start = {0};
  for (int64_t f = 0; f < grid.frames; f += block.frames) {
    for (int64_t y = 0; y < grid.height; y += block.height) {
      for (int64_t x = 0; x < grid.width; x += block.width) {
        for (int64_t i = f; i < std::min(f + block.frames, grid.frames); ++i) {
          for (int64_t j = y; j < std::min(y + block.height, grid.height); ++j) {
            for (int64_t k = x; k < std::min(x + block.width, grid.width); ++k)
              order.push_back(layout.before + (i * grid.height + j) * grid.width + k);
          }
        }
        start.push_back(static_cast<int64_t>(order.size()));
      }
    }
  }
  out.grid_blocks = static_cast<int64_t>(start.size()) - 1;
  const auto own_blocks = [&](int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      order.push_back(first + i);
      if ((i + 1) % block.size() == 0 || i + 1 == count)
        start.push_back(static_cast<int64_t>(order.size()));
    }
  };
  own_blocks(0, layout.before);
  own_blocks(layout.before + grid.size(), layout.after);
  out.blocks = static_cast<int64_t>(start.size()) - 1;
  out.order = torch::tensor(order, torch::kInt64);
  out.inverse = torch::empty_like(out.order);
  out.inverse.index_put_({out.order}, torch::arange(out.order.size(0)));
  out.start = torch::tensor(start, torch::kInt64);
  out.block_of = torch::repeat_interleave(out.start.diff());
  return out;
}

Tensor window_lists(const BlockGeometry& geometry, int64_t window) {
  SIGMA_CHECK(kUsage, geometry.grid.axes() == 1,
              "window: expected a sequence, got a grid of {} axes", geometry.grid.axes());
  SIGMA_CHECK(kUsage, window >= 1, "window: expected at least 1 token, got {}", window);
  const Tensor own = torch::arange(geometry.grid_blocks);
  const Tensor first = geometry.block_of.index(
      {(geometry.start.slice(0, 0, geometry.grid_blocks) - (window - 1)).clamp_min(0)});
  const int64_t n = parts(window - 1, geometry.block.width) + 1;
  const Tensor list = first.unsqueeze(1) + torch::arange(n);
  return list.masked_fill(list > own.unsqueeze(1), -1).to(torch::kInt);
}

Tensor block_starts(int64_t N, int64_t size) {
  return torch::cat({torch::arange(0, N, size), torch::tensor({N})});
}

}  // namespace sigma
