// Lists of blocks on an NVIDIA GPU against the choice by scores in float64 on the CPU. Every test
// skips without one.
#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>

#include "sigma/attention/selection_gpu.h"
#include "sigma/attention/windows.h"
#include "tests/cuda/gpu_test.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

struct Case {
  std::string name;
  int64_t B = 1, H = 2, G = 1, D = 64;
  Grid grid;
  Grid block;
  int64_t size = 0, stride = 0;  // sequences
  bool causal = false;
  SelectionConfig config;
};

SelectionConfig config_of(const std::string& strategy, int64_t n) {
  SelectionConfig config;
  config.strategy = strategy;
  config.num_selected = n;
  return config;
}

std::vector<Case> cases() {
  return {
      {"causal, 32/16/64", 1, 32, 2, 128, {1, 1, 1500}, {1, 1, 64}, 32, 16, true},
      {"causal, 64/64/64", 2, 3, 3, 64, {1, 1, 1111}, {1, 1, 64}, 64, 64, true},
      {"causal, 16/16/64", 1, 8, 2, 64, {1, 1, 777}, {1, 1, 64}, 16, 16, true},
      {"causal, fewer blocks than n", 1, 4, 2, 64, {1, 1, 300}, {1, 1, 64}, 32, 16, true},
      {"causal, no window", 1, 4, 2, 64, {1, 1, 20}, {1, 1, 64}, 32, 16, true},
      {"a sequence in tiles", 1, 4, 1, 80, {1, 1, 1100}, {1, 1, 64}, 32, 16, false},
      {"an image", 1, 4, 4, 64, {1, 50, 50}, {1, 8, 8}},
      {"a clip", 2, 6, 2, 64, {7, 9, 13}, {4, 4, 4}},
  };
}

struct Scores {
  Tensor value, bound;  // [B,G,R,W]
};

// The probabilities of the compressed branch in float64, as scores of blocks, and what float32 may
// change of them, relative to each: dot products of D terms up to `most`, the sum over the windows
// and lse, the sum over heads and queries (attention.md 11).
Scores scores_of(const Case& c, const BlockGeometry& geometry, const Tensor& window_rank,
                 const Tensor& q, const Tensor& ck) {
  const int64_t M = c.H / c.G;
  Tensor s = torch::matmul(q, ck.repeat_interleave(M, 1).transpose(-1, -2)) /
             std::sqrt(static_cast<double>(c.D));
  const double most = s.numel() > 0 ? s.abs().max().item<double>() : 0;
  if (c.causal) {
    s = s.masked_fill(window_rank.unsqueeze(0) > geometry.rank().unsqueeze(1),
                      -std::numeric_limits<double>::infinity());
  }
  Tensor p = torch::softmax(s, -1).nan_to_num(0).unflatten(1, {c.G, M}).sum(2);
  if (geometry.grid.axes() == 1)
    p = block_scores(p, geometry.grid.size(), c.size, c.stride, geometry.block.size());
  if (!c.causal) {
    std::vector<Tensor> tiles;
    const std::vector<int64_t> start = list(geometry.start);
    for (int64_t t = 0; t < geometry.grid_blocks; ++t)
      tiles.push_back(p.slice(2, start[t], start[t + 1]).sum(2));
    p = torch::stack(tiles, 2);
  }
  const double terms = static_cast<double>(c.D) * most + static_cast<double>(ck.size(2)) +
                       static_cast<double>(c.H * geometry.block.size());
  return {p, 4 * 0x1p-24 * terms * p};
}

class SelectionCuda : public GpuTest {};

TEST_F(SelectionCuda, ListsDifferOnlyWhereScoresAgree) {
  for (const Case& base : cases()) {
    for (const auto dtype : {torch::kFloat, torch::kHalf, torch::kBFloat16}) {
      Case c = base;
      c.config = config_of("top_n", 8);
      SCOPED_TRACE(c.name + " " + toString(dtype));
      const BlockGeometry geometry = block_geometry(
          {.grid = c.grid, .pattern = c.causal ? Pattern::kCausal : Pattern::kFull}, c.block);
      const Tensor windows = geometry.grid.axes() == 1
                                 ? sequence_windows(c.grid.size(), c.size, c.stride, c.causal)
                                 : cube_windows(geometry);
      const Tensor window_rank = std::get<0>(windows.max(1));
      const Tensor q = normal({c.B, c.H, c.grid.size(), c.D}, 1).to(dtype);
      const Tensor ck = normal({c.B, c.G, windows.size(0), c.D}, 2).to(dtype);
      const SelectionTables tables =
          selection_tables(c.config, geometry, window_rank, c.causal, torch::kCUDA);
      const SelectionInput input{.q = q.to(torch::kCUDA),
                                 .ck = ck.to(torch::kCUDA),
                                 .scale = 1 / std::sqrt(static_cast<double>(c.D)),
                                 .size = c.size,
                                 .stride = c.stride};
      const Tensor actual = select_blocks_gpu(c.config, geometry, tables, input);
      ASSERT_TRUE(actual.defined());
      const Scores s =
          scores_of(c, geometry, window_rank, q.to(torch::kDouble), ck.to(torch::kDouble));
      const SelectionRows rows{.tiles = !c.causal, .causal = c.causal};
      const Tensor expected = select_blocks(c.config, geometry, rows, s.value);
      ASSERT_EQ(actual.sizes(), expected.sizes());
      // Blocks of one list alone, against the lowest score of the list.
      const int64_t W = geometry.grid_blocks;
      const auto mask = [&](const Tensor& lists) {
        const Tensor ids = lists.cpu().to(torch::kInt64);
        return torch::zeros({c.B, c.G, ids.size(2), W + 1})
            .scatter_(3, ids.masked_fill(ids < 0, W), 1)
            .slice(3, 0, W)
            .to(torch::kBool);
      };
      const Tensor mine = mask(actual), other = mask(expected);
      EXPECT_TRUE(torch::equal(mine.sum(3), other.sum(3)));
      const Tensor apart = (mine != other).to(torch::kDouble);
      const double infinity = std::numeric_limits<double>::infinity();
      const Tensor high = (s.value - s.bound).masked_fill(apart == 0, -infinity);
      const Tensor low = (s.value + s.bound).masked_fill(apart == 0, infinity);
      EXPECT_TRUE((std::get<0>(high.max(3)) <= std::get<0>(low.min(3))).all().item<bool>());
      // The same bits again.
      EXPECT_TRUE(torch::equal(actual, select_blocks_gpu(c.config, geometry, tables, input)));
    }
  }
}

// A choice is a sequence of comparisons, of which few are close: nearly all lists are equal. Token
// rows are chosen by a warp, tiles by a thread block; some cubes' keys are equal.
TEST_F(SelectionCuda, DiverseListsAreNearlyAllEqual) {
  std::vector<Case> all = {{"tokens", 1, 4, 2, 64, {1, 1, 1500}, {1, 1, 64}, 32, 16, true},
                           {"cubes", 1, 2, 2, 64, {1, 96, 96}, {1, 4, 4}}};
  all[0].config.num_selected = 6;
  all[1].config.num_selected = 48;
  for (const Case& c : all) {
    const BlockGeometry geometry = block_geometry(
        {.grid = c.grid, .pattern = c.causal ? Pattern::kCausal : Pattern::kFull}, c.block);
    const Tensor windows = geometry.grid.axes() == 1
                               ? sequence_windows(c.grid.size(), c.size, c.stride, c.causal)
                               : cube_windows(geometry);
    const Tensor window_rank = std::get<0>(windows.max(1));
    const Tensor q = normal({c.B, c.H, c.grid.size(), c.D}, 1, torch::kFloat);
    const Tensor ck = normal({c.B, c.G, window_rank.size(0), c.D}, 2, torch::kFloat);
    const Tensor raw = normal({c.B, c.G, c.grid.size(), c.D}, 3, torch::kFloat);
    if (!c.causal) raw.slice(2, 0, 640).copy_(raw.slice(2, 640, 1280));
    const Scores s =
        scores_of(c, geometry, window_rank, q.to(torch::kDouble), ck.to(torch::kDouble));
    for (const std::string strategy : {"dart", "max_min"}) {
      for (const int64_t pool_factor : {0, 2}) {
        SelectionConfig config = config_of(strategy, c.config.num_selected);
        config.pool_factor = pool_factor;
        const SelectionTables tables =
            selection_tables(config, geometry, window_rank, c.causal, torch::kCUDA);
        const Tensor actual = select_blocks_gpu(config, geometry, tables,
                                                {.q = q.to(torch::kCUDA),
                                                 .ck = ck.to(torch::kCUDA),
                                                 .raw = raw.to(torch::kCUDA),
                                                 .scale = 1 / std::sqrt(static_cast<double>(c.D)),
                                                 .size = c.size,
                                                 .stride = c.stride});
        ASSERT_TRUE(actual.defined());
        const SelectionRows rows{.tiles = !c.causal, .causal = c.causal};
        const Tensor expected = select_blocks(config, geometry, rows, s.value,
                                              Windows(raw, cube_windows(geometry)).mean());
        const Tensor same = (actual.cpu() == expected).all(3).to(torch::kDouble).mean();
        EXPECT_GE(same.item<double>(), 0.99) << c.name << " " << strategy << " " << pool_factor;
      }
    }
  }
}

TEST_F(SelectionCuda, WhatKernelsDoNotTakeIsLeftToOthers) {
  const BlockGeometry geometry = block_geometry({.grid = {1, 8, 8}}, {1, 4, 4});
  const SelectionConfig config = config_of("top_n", 2);
  const SelectionTables tables =
      selection_tables(config, geometry, torch::arange(4), false, torch::kCUDA);
  for (const auto& [D, dtype] : std::vector<std::pair<int64_t, torch::ScalarType>>{
           {192, torch::kFloat}, {64, torch::kDouble}, {12, torch::kHalf}}) {
    const SelectionInput input{.q = normal({1, 1, 64, D}, 1, dtype).to(torch::kCUDA),
                               .ck = normal({1, 1, 4, D}, 2, dtype).to(torch::kCUDA)};
    EXPECT_FALSE(select_blocks_gpu(config, geometry, tables, input).defined()) << D;
  }
}

}  // namespace
}  // namespace sigma
