// Scores of blocks by overlap, and the choice among blocks.
#include "sigma/attention/selection.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>
#include <numbers>

#include "sigma/base/error.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

TEST(BlockScores, GoldenOverlap) {
  const Tensor p = torch::tensor({.1, .2, .05, .3, .15, .05, .15}, torch::kDouble);
  EXPECT_LE(error(block_scores(p, 16, 4, 2, 4), torch::tensor({.4, .6, .65, .35}, torch::kDouble)),
            1e-15);
}

TEST(BlockScores, EqualBruteForce) {
  for (const auto& [l, d, b] : std::vector<std::array<int64_t, 3>>{{32, 16, 64},
                                                                   {64, 64, 64},
                                                                   {32, 32, 64},
                                                                   {64, 16, 64},
                                                                   {16, 16, 64},
                                                                   {32, 16, 128},
                                                                   {48, 16, 96}}) {
    for (const int64_t N : {b * 4, b * 4 + 7, l}) {
      const int64_t windows = (N - l) / d + 1;
      const Tensor p = normal({2, 3, windows}, 1).abs();
      const Tensor actual = block_scores(p, N, l, d, b);
      Tensor expected = torch::zeros({2, 3, (N + b - 1) / b}, torch::kDouble);
      for (int64_t j = 0; j < expected.size(2); ++j) {
        for (int64_t i = 0; i < windows; ++i) {
          int64_t shared = 0;
          for (int64_t t = i * d; t < i * d + l; ++t) shared += t / b == j;
          expected.select(2, j).add_(p.select(2, i) *
                                     (static_cast<double>(shared) / static_cast<double>(d)));
        }
      }
      EXPECT_LE(error(actual, expected), 1e-13) << l << " " << d << " " << b << " " << N;
      // Nothing of a window is lost.
      EXPECT_LE(error(actual.sum(-1), p.sum(-1) * static_cast<double>(l) / static_cast<double>(d)),
                1e-12);
    }
  }
  EXPECT_EQ(block_scores(torch::empty({2, 0}), 5, 8, 4, 8).sizes(), (std::vector<int64_t>{2, 1}));
  EXPECT_THROW(block_scores(torch::ones({3}), 64, 32, 24, 64), Error);
  EXPECT_THROW(block_scores(torch::ones({3}), 64, 64, 16, 32), Error);
}

// One row over blocks of one token.
std::vector<int64_t> choose(const SelectionConfig& config, const Tensor& scores,
                            const Tensor& keys = {}) {
  const int64_t W = scores.size(0);
  const BlockGeometry geometry = block_geometry({.grid = {1, 1, W}}, {1, 1, 1});
  return list(select_blocks(config, geometry, {.tiles = true}, scores.view({1, 1, 1, W}),
                            keys.defined() ? keys.view({1, 1, W, -1}) : keys));
}

SelectionConfig free_choice(const std::string& strategy, int64_t n) {
  SelectionConfig config;
  config.strategy = strategy;
  config.num_selected = n;
  config.init_blocks = 0;
  config.local_radius = -1;
  config.pool_factor = 0;
  return config;
}

TEST(SelectBlocks, TopNBreaksTiesByIndexAndPutsNanLast) {
  const float nan = std::nanf("");
  const float infinity = std::numeric_limits<float>::infinity();
  const Tensor scores = torch::tensor({.1f, .5f, nan, .5f, .2f, -infinity});
  EXPECT_EQ(choose(free_choice("top_n", 1), scores), (std::vector<int64_t>{1}));
  EXPECT_EQ(choose(free_choice("top_n", 3), scores), (std::vector<int64_t>{1, 3, 4}));
  EXPECT_EQ(choose(free_choice("top_n", 5), scores), (std::vector<int64_t>{0, 1, 3, 4, 5}));
  EXPECT_EQ(choose(free_choice("top_n", 9), scores), (std::vector<int64_t>{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(choose(free_choice("top_n", 2), torch::full({4}, nan)), (std::vector<int64_t>{0, 1}));
}

// Unit vectors at 0, 10, 20, 90 and 180 degrees.
Tensor directions() {
  const Tensor angle =
      torch::tensor({0.0, 10.0, 20.0, 90.0, 180.0}, torch::kDouble) * (std::numbers::pi / 180);
  return torch::stack({angle.cos(), angle.sin()}, 1).to(torch::kFloat);
}

TEST(SelectBlocks, DiverseGolden) {
  const Tensor p = torch::tensor({.40f, .30f, .16f, .10f, .04f});
  SelectionConfig max_min = free_choice("max_min", 3);
  for (const auto& [alpha, expected] : std::vector<std::pair<double, std::vector<int64_t>>>{
           {0, {0, 3, 4}}, {1, {0, 3, 4}}, {4, {0, 1, 3}}, {1e6, {0, 1, 2}}}) {
    max_min.alpha = alpha;
    EXPECT_EQ(choose(max_min, p, directions()), expected) << alpha;
  }
  SelectionConfig dart = free_choice("dart", 4);
  dart.num_pivots = 1;
  EXPECT_EQ(choose(dart, p, directions()), (std::vector<int64_t>{0, 2, 3, 4}));
  dart.num_pivots = 2;
  EXPECT_EQ(choose(dart, p, directions()), (std::vector<int64_t>{0, 1, 3, 4}));
}

TEST(SelectBlocks, DiversityStaysInThePoolAndAvoidsBlocksWithoutDirection) {
  const Tensor p = torch::tensor({.40f, .30f, .16f, .10f, .04f});
  for (const std::string strategy : {"max_min", "dart"}) {
    SelectionConfig config = free_choice(strategy, 2);
    config.pool_factor = 2;
    for (const int64_t j : choose(config, p, directions())) EXPECT_LT(j, 4) << strategy;
    Tensor keys = directions().clone();
    keys[0] = 0;
    const auto chosen = choose(free_choice(strategy, 3), p, keys);
    EXPECT_TRUE(std::find(chosen.begin(), chosen.end(), 0) == chosen.end()) << strategy;
  }
  EXPECT_THROW(choose(free_choice("dart", 2), p), Error);
}

TEST(SelectBlocks, CausalRowsChooseWhatBeganBeforeThem) {
  const BlockGeometry geometry = block_geometry({.grid = {1, 1, 40}}, {1, 1, 8});
  SelectionConfig config;
  config.num_selected = 4;
  const Tensor scores = torch::tensor({.1f, .2f, .3f, .9f, .8f}).expand({1, 1, 40, 5});
  const Tensor lists = select_blocks(config, geometry, {.causal = true}, scores);
  EXPECT_EQ(list(lists[0][0][3]), (std::vector<int64_t>{0, -1, -1, -1}));
  EXPECT_EQ(list(lists[0][0][9]), (std::vector<int64_t>{0, 1, -1, -1}));
  // The first block, its own and the one before; one of the rest by score.
  EXPECT_EQ(list(lists[0][0][39]), (std::vector<int64_t>{0, 2, 3, 4}));
  // A later strip of rows is the same.
  EXPECT_TRUE(torch::equal(
      select_blocks(config, geometry, {.causal = true, .first = 20}, scores.slice(2, 20)),
      lists.slice(2, 20)));
  config.num_selected = 2;
  EXPECT_THROW(select_blocks(config, geometry, {.causal = true}, scores), Error);
}

TEST(SelectBlocks, LocalBlocksOfAGrid) {
  const BlockGeometry geometry = block_geometry({.grid = {1, 8, 8}}, {1, 2, 2});
  SelectionConfig config;
  config.num_selected = 9;
  config.local_radius = 1;
  const Tensor lists =
      select_blocks(config, geometry, {.tiles = true}, torch::zeros({1, 1, 16, 16}));
  EXPECT_EQ(list(lists[0][0][5]), (std::vector<int64_t>{0, 1, 2, 4, 5, 6, 8, 9, 10}));
  // A corner has four of them; then the lowest ids.
  EXPECT_EQ(list(lists[0][0][0]), (std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_EQ(list(lists[0][0][15]), (std::vector<int64_t>{0, 1, 2, 3, 4, 10, 11, 14, 15}));
}

}  // namespace
}  // namespace sigma
