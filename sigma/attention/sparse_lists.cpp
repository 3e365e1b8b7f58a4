// What a layout fixes, and the lists of blocks of a pass.
#include <torch/types.h>

#include <cmath>
#include <limits>

#include "sigma/attention/sparse.h"
#include "sigma/attention/windows.h"
#include "sigma/base/error.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kStrip = 128;  // queries whose scores are in memory at once

}  // namespace

const SparseAttention::Plan& SparseAttention::plan_for(const TokenLayout& layout,
                                                       torch::Device device) {
  const bool same = plan_ && plan_->device == device && plan_->layout.grid == layout.grid &&
                    plan_->layout.before == layout.before && plan_->layout.after == layout.after &&
                    plan_->layout.pattern == layout.pattern;
  if (same) return *plan_;
  SIGMA_CHECK(kUsage, layout.pattern != Pattern::kCausalAfter,
              "sparse attention: expected pattern full or causal, got causal_after");
  const bool causal = layout.pattern == Pattern::kCausal;
  const bool sequence = layout.grid.axes() == 1;
  SIGMA_CHECK(kUsage, !causal || sequence,
              "sparse attention: a causal pattern expects a sequence, got a grid of {} axes",
              layout.grid.axes());
  SIGMA_CHECK(kUsage, config_.window == 0 || causal, "window = {}: expected a causal sequence",
              config_.window);
  auto plan = std::make_unique<Plan>();
  plan->layout = layout;
  plan->causal = causal;
  plan->geometry = block_geometry(layout, block_);
  const BlockGeometry& geometry = plan->geometry;
  const Tensor windows = sequence ? sequence_windows(layout.grid.size(), size_, stride_, causal)
                                  : cube_windows(geometry);
  plan->window_rank = layout.before + std::get<0>(windows.max(1));
  plan->tile_start = geometry.start.slice(0, 0, geometry.grid_blocks + 1);
  plan->device = device;
  plan->order = geometry.order.to(device);
  plan->inverse = geometry.inverse.to(device);
  plan->window_tokens = windows.to(device);
  plan->regular = regular(windows, stride_);
  plan->centres = window_centres(windows, geometry, layout.before).to(device);
  if (config_.window > 0) plan->near = window_lists(geometry, config_.window).to(device);
  const Tensor& rank = geometry.rank();
  if (causal && geometry.blocks > geometry.grid_blocks)
    plan->beside = (rank.unsqueeze(0) <= rank.slice(0, layout.grid.size()).unsqueeze(1)).to(device);
  if (device.is_cuda())
    plan->selection =
        selection_tables(config_.selection, geometry, plan->window_rank, causal, device);
  plan_ = std::move(plan);
  return *plan_;
}

// The lists of all grid rows; where no kernel takes them, a strip of queries at a time.
Tensor SparseAttention::choose(const Tensor& q, const Tensor& ck, const Tensor& lse,
                               const Tensor& raw, const Plan& plan) const {
  const torch::NoGradGuard no_grad;
  const BlockGeometry& geometry = plan.geometry;
  const int64_t Ng = geometry.grid.size();
  const int64_t M = num_heads_ / kv_heads_;
  const double scale = 1 / std::sqrt(static_cast<double>(head_dim_));
  if (q.is_cuda()) {
    const Tensor lists = select_blocks_gpu(config_.selection, geometry, plan.selection,
                                           {.q = q,
                                            .ck = ck,
                                            .lse = lse,
                                            .raw = raw,
                                            .scale = scale,
                                            .size = size_,
                                            .stride = stride_});
    if (lists.defined()) return lists;
  }
  const Tensor compressed = ck.detach().repeat_interleave(M, 1).transpose(-1, -2);
  const bool diverse = config_.selection.strategy != "top_n";
  const Tensor means = diverse ? Windows(raw, cube_windows(geometry)).mean() : Tensor();
  const int64_t* start = geometry.start.data_ptr<int64_t>();
  std::vector<Tensor> lists;
  for (int64_t tile = 0; tile < geometry.grid_blocks;) {
    const int64_t first_tile = tile;
    const int64_t first = start[tile];
    do ++tile;
    while (tile < geometry.grid_blocks && start[tile + 1] - first <= kStrip);
    const int64_t last = start[tile];
    Tensor scores =
        torch::matmul(q.detach().slice(2, first, last), compressed).to(torch::kFloat) * scale;
    if (plan.causal) {
      const Tensor hidden =
          plan.window_rank.unsqueeze(0) > geometry.rank().slice(0, first, last).unsqueeze(1);
      scores = scores.masked_fill(hidden.to(scores.device()), -kInfinity);
    }
    Tensor p = torch::softmax(scores, -1).nan_to_num(0);  // a row that sees no window
    p = p.unflatten(1, {kv_heads_, M}).sum(2);
    if (geometry.grid.axes() == 1) p = block_scores(p, Ng, size_, stride_, block_.size());
    if (plan.causal) {
      lists.push_back(
          select_blocks(config_.selection, geometry, {.causal = true, .first = first}, p, means));
      continue;
    }
    std::vector<Tensor> tiles;
    for (int64_t t = first_tile; t < tile; ++t)
      tiles.push_back(p.slice(2, start[t] - first, start[t + 1] - first).sum(2));
    lists.push_back(select_blocks(config_.selection, geometry, {.tiles = true, .first = first_tile},
                                  torch::stack(tiles, 2), means));
  }
  return torch::cat(lists, 2).to(q.device());
}

}  // namespace sigma
