// Cubes of a grid, their order, and window lists.
#include "sigma/attention/block_plan.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include "sigma/base/error.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

TEST(BlockGeometry, RaggedPlane) {
  // 3 x 5 tokens in cubes of 2 x 3.
  const BlockGeometry g = block_geometry({.grid = {1, 3, 5}}, {1, 2, 3});
  EXPECT_EQ(g.grid_blocks, 4);
  EXPECT_EQ(g.blocks, 4);
  EXPECT_EQ(list(g.start), (std::vector<int64_t>{0, 6, 10, 13, 15}));
  EXPECT_EQ(list(g.order),
            (std::vector<int64_t>{0, 1, 2, 5, 6, 7, 3, 4, 8, 9, 10, 11, 12, 13, 14}));
  EXPECT_TRUE(torch::equal(g.order.index({g.inverse}), torch::arange(15)));
  EXPECT_EQ(list(g.block_of), (std::vector<int64_t>{0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3}));
}

TEST(BlockGeometry, TokensBeforeAndAfterHaveBlocksOfTheirOwn) {
  const BlockGeometry g = block_geometry({.before = 5, .grid = {1, 1, 6}, .after = 1}, {1, 1, 4});
  EXPECT_EQ(g.grid_blocks, 2);
  EXPECT_EQ(g.blocks, 5);
  EXPECT_EQ(list(g.start), (std::vector<int64_t>{0, 4, 6, 10, 11, 12}));
  EXPECT_EQ(list(g.order), (std::vector<int64_t>{5, 6, 7, 8, 9, 10, 0, 1, 2, 3, 4, 11}));
}

TEST(BlockGeometry, AGridOfOneRowIsASequence) {
  const BlockGeometry row = block_geometry({.grid = {1, 1, 70}}, {1, 1, 16});
  const BlockGeometry cube = block_geometry({.grid = {1, 1, 70}}, {4, 4, 16});
  EXPECT_TRUE(torch::equal(row.order, torch::arange(70)));
  EXPECT_TRUE(torch::equal(row.order, cube.order));
  EXPECT_TRUE(torch::equal(row.start, cube.start));
}

TEST(BlockGeometry, EveryTokenOnce) {
  for (const Grid& grid : {Grid{7, 9, 5}, Grid{1, 1, 1}, Grid{2, 3, 4}}) {
    const BlockGeometry g = block_geometry({.before = 3, .grid = grid, .after = 2}, {4, 4, 4});
    EXPECT_TRUE(torch::equal(std::get<0>(g.order.sort()), torch::arange(grid.size() + 5)));
    EXPECT_GT(g.start.diff().min().item<int64_t>(), 0);
    EXPECT_EQ(g.start[-1].item<int64_t>(), grid.size() + 5);
  }
}

TEST(BlockGeometry, Errors) {
  EXPECT_THROW(block_geometry({.grid = {1, 1, 8}}, {1, 0, 4}), Error);
  EXPECT_THROW(block_geometry({.grid = {1, 1, 8}, .visible = torch::zeros({1, 2})}, {1, 1, 4}),
               Error);
}

TEST(WindowLists, OwnBlockAndThoseTheWindowTouches) {
  const BlockGeometry g = block_geometry({.grid = {1, 1, 10}}, {1, 1, 4});
  const Tensor lists = window_lists(g, 5);
  EXPECT_EQ(lists.size(1), 2);
  EXPECT_EQ(list(lists[0]), (std::vector<int64_t>{0, -1}));
  EXPECT_EQ(list(lists[1]), (std::vector<int64_t>{0, 1}));
  EXPECT_EQ(list(lists[2]), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(list(window_lists(g, 1)[2]), (std::vector<int64_t>{2}));
  EXPECT_THROW(window_lists(g, 0), Error);
  EXPECT_THROW(window_lists(block_geometry({.grid = {1, 2, 2}}, {1, 2, 2}), 3), Error);
}

}  // namespace
}  // namespace sigma
