// Inputs of block-sparse attention for tests: one list of cases for every kernel.
#pragma once

#include <torch/autograd.h>
#include <torch/types.h>

#include <algorithm>
#include <vector>

#include "sigma/attention/block_plan.h"
#include "sigma/attention/block_sparse.h"
#include "tests/testing/numbers.h"

namespace sigma {

struct BlockSparseCase {
  const char* name;
  int64_t B = 1, H = 2, G = 1, Nq = 70, Nk = 70, D = 16, Dv = 16, S = 16, n = 3;
  bool tiles = false;
  bool causal = false;
  int64_t window = 0;
  bool invalid_keys = false;
  double size = 1;  // of queries and keys
};

inline const std::vector<BlockSparseCase> kBlockSparseCases = {
    {.name = "token rows"},
    {.name = "token rows, causal", .B = 2, .H = 6, .G = 2, .n = 4, .causal = true},
    {.name = "one key/value head a query head", .H = 3, .G = 3, .n = 2},
    {.name = "sixteen heads a group", .H = 16, .G = 1, .Nq = 33, .Nk = 33},
    {.name = "tiles", .B = 2, .H = 4, .G = 2, .Nq = 130, .Nk = 130, .S = 32, .tiles = true},
    {.name = "tiles of more than a chunk", .Nq = 200, .Nk = 200, .S = 100, .n = 2, .tiles = true},
    {.name = "tiles, causal", .S = 32, .n = 2, .tiles = true, .causal = true},
    {.name = "window", .n = 5, .causal = true, .window = 13},
    {.name = "other widths", .Nq = 43, .Nk = 43, .D = 12, .Dv = 24, .S = 6, .n = 4},
    {.name = "more keys than queries", .Nq = 20, .Nk = 65},
    {.name = "one token", .Nq = 1, .Nk = 1, .n = 1},
    {.name = "blocks of one", .Nq = 9, .Nk = 9, .S = 1, .n = 4},
    {.name = "invalid keys", .B = 2, .H = 4, .G = 2, .invalid_keys = true},
    {.name = "large scores", .n = 5, .size = 6},
    {.name = "empty lists", .n = 0},
    {.name = "no queries", .Nq = 0, .Nk = 10},
};

// Random distinct blocks in random order; about a third of the places are empty, some hold ids that
// do not exist, and some rows have nothing at all.
inline torch::Tensor random_lists(const BlockSparseCase& c, int64_t rows, int64_t W) {
  const torch::Tensor order = normal({c.B, c.G, rows, std::max<int64_t>(W, c.n)}, 21)
                                  .argsort(/*stable=*/true, /*dim=*/3, /*descending=*/false);
  torch::Tensor lists = order.slice(3, 0, c.n).to(torch::kInt);
  const torch::Tensor drop = normal({c.B, c.G, rows, c.n}, 22) > 0.4;
  const torch::Tensor empty = normal({c.B, c.G, rows, 1}, 23) > 1.5;
  return lists.masked_fill(drop | empty, -1).contiguous();
}

inline BlockSparseInput input_of(const BlockSparseCase& c) {
  BlockSparseInput in;
  in.q = normal({c.B, c.H, c.Nq, c.D}, 1) * c.size;
  in.k = normal({c.B, c.G, c.Nk, c.D}, 2) * c.size;
  in.v = normal({c.B, c.G, c.Nk, c.Dv}, 3);
  in.kv_start = block_starts(c.Nk, c.S);
  if (c.tiles) in.q_start = block_starts(c.Nq, c.S);
  const int64_t rows = c.tiles ? in.q_start.size(0) - 1 : c.Nq;
  in.index = random_lists(c, rows, in.kv_start.size(0) - 1);
  if (c.causal) {
    in.rank_q = torch::arange(c.Nq);
    in.rank_k = torch::arange(c.Nk);
    in.window = c.window;
  }
  if (c.invalid_keys) in.key_valid = normal({c.B, c.Nk}, 24) > -0.3;
  return in;
}

struct BlockSparseResult {
  torch::Tensor out, lse, grad_q, grad_k, grad_v;
};

template <typename F>
BlockSparseResult run(F op, const BlockSparseInput& from, torch::ScalarType dtype,
                      const torch::Tensor& grad_out) {
  BlockSparseInput in = from;
  in.q = in.q.to(dtype).detach().requires_grad_();
  in.k = in.k.to(dtype).detach().requires_grad_();
  in.v = in.v.to(dtype).detach().requires_grad_();
  const AttentionOutput out = op(in);
  (out.out * grad_out.to(dtype)).sum().backward();
  return {out.out.detach(), out.lse, in.q.grad(), in.k.grad(), in.v.grad()};
}

}  // namespace sigma
