#include "sigma/attention/windows.h"

#include <torch/types.h>

#include "sigma/attention/operator.h"

namespace sigma {

using torch::Tensor;

Tensor sequence_windows(int64_t N, int64_t size, int64_t stride, bool causal) {
  const int64_t over = N - size;
  int64_t count = causal ? (over >= 0 ? over / stride + 1 : 0)
                         : 1 + (std::max<int64_t>(over, 0) + stride - 1) / stride;
  const Tensor tokens = (torch::arange(count) * stride).unsqueeze(1) + torch::arange(size);
  return tokens.masked_fill(tokens >= N, -1);
}

Tensor cube_windows(const BlockGeometry& geometry) {
  const Tensor start = geometry.start.slice(0, 0, geometry.grid_blocks).unsqueeze(1);
  const Tensor count = geometry.start.diff().slice(0, 0, geometry.grid_blocks).unsqueeze(1);
  const Tensor slot = torch::arange(geometry.block.size());
  return (start + slot).masked_fill(slot >= count, -1);
}

Tensor window_centres(const Tensor& window_tokens, const BlockGeometry& geometry, int64_t before) {
  const Grid& grid = geometry.grid;
  const Tensor there = window_tokens >= 0;
  const Tensor raster = geometry.order.index({window_tokens.clamp_min(0)}) - before;
  const Tensor f = torch::div(raster, grid.height * grid.width, "floor");
  const Tensor y = torch::div(raster, grid.width, "floor") % grid.height;
  const Tensor x = raster % grid.width;
  std::vector<Tensor> columns;
  if (grid.axes() == 3) columns.push_back(f);
  if (grid.axes() >= 2) columns.push_back(y);
  columns.push_back(x);
  const Tensor points = torch::stack(columns, -1).to(torch::kDouble) * there.unsqueeze(-1);
  return points.sum(1) / there.sum(1, /*keepdim=*/true);
}

bool regular(const Tensor& windows, int64_t stride) {
  const Tensor first = torch::arange(windows.size(0)).unsqueeze(1) * stride;
  return windows.size(0) > 0 && torch::equal(windows, first + torch::arange(windows.size(1)));
}

Windows::Windows(const Tensor& x, int64_t count, int64_t size)
    : slots(first_of(x, 2, count * size).unflatten(2, {count, size})) {}

Windows::Windows(const Tensor& x, const Tensor& windows) {
  const Tensor tokens = windows.to(x.device());
  slots = x.index_select(2, tokens.clamp_min(0).flatten())
              .unflatten(2, {tokens.size(0), tokens.size(1)});
  known = (tokens >= 0).unsqueeze(-1).to(x.scalar_type());
}

}  // namespace sigma
