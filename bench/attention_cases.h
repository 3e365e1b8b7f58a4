// Cases of bench/attention_gpu: shapes, random lists, goals, and what is exact.
#pragma once

#include <torch/types.h>

#include <string>
#include <tuple>

#include "bench/gpu_timing.h"
#include "sigma/attention/block_plan.h"
#include "sigma/attention/block_sparse.h"
#include "sigma/base/random.h"

namespace sigma::bench {

constexpr int64_t kBlock = 64;

struct SparseCase {
  std::string name, title;
  int64_t H, G, N, D, n;
  bool tiles = true;                   // full; else token rows, causal
  double common = 0;                   // share of a list that 64 neighbouring tokens have in common
  double goal = 0, goal_backward = 0;  // ms on one H100
  int64_t blocks() const { return N / kBlock; }
  int64_t group() const { return H / G; }
};

inline torch::Tensor gpu_normal(torch::IntArrayRef shape, uint32_t site,
                                torch::ScalarType dtype = torch::kBFloat16) {
  torch::Tensor out = torch::empty(shape, torch::TensorOptions(torch::kCUDA).dtype(dtype));
  fill_normal_keyed(out, 1, random_stream(Purpose::kEval, site), 0);
  return out;
}

/// Rows of `n` blocks, ascending; W: none. The largest noise [rows,W] wins. Causal (`own` [rows]
/// defined): never after the own block, always the first and the own one.
inline torch::Tensor best_blocks(torch::Tensor noise, const torch::Tensor& own, int64_t n) {
  const int64_t W = noise.size(1);
  if (own.defined()) {
    noise = noise.masked_fill(torch::arange(W, own.options()) > own.unsqueeze(1), -1);
    noise.select(1, 0).fill_(9);
    noise.scatter_(1, own.unsqueeze(1), 9);
  }
  const auto [best, block] = noise.topk(n, -1);
  return std::get<0>(block.masked_fill(best < 0, W).sort(-1));
}

/// int32 [1,G,R,n]: min(n, those allowed) distinct blocks, ascending, -1 at the end.
inline torch::Tensor random_lists(const SparseCase& c) {
  const int64_t W = c.blocks();
  const int64_t R = c.tiles ? W : c.N;
  const auto options = torch::TensorOptions(torch::kCUDA);
  const auto noise = [&](int64_t rows, uint32_t site) {
    torch::Tensor out = torch::empty({rows, W}, options);
    fill_uniform_keyed(out, 1, random_stream(Purpose::kEval, site), 0);
    return out;
  };
  const torch::Tensor block = torch::arange(W, options.dtype(torch::kInt64));
  const torch::Tensor own = c.tiles ? torch::Tensor() : block.repeat_interleave(kBlock);
  std::vector<torch::Tensor> lists;
  for (int64_t g = 0; g < c.G; ++g) {
    const auto site = static_cast<uint32_t>(100 + 2 * g);
    torch::Tensor score = noise(R, site);
    if (c.common > 0) {
      const auto shared = static_cast<int64_t>(c.common * static_cast<double>(c.n));
      const torch::Tensor first =
          torch::zeros({W, W + 1}, options)
              .scatter_(1, best_blocks(noise(W, site + 1), block, shared), 2)
              .slice(1, 0, W);
      score += first.repeat_interleave(kBlock, 0);
    }
    const torch::Tensor best = best_blocks(score, own, c.n);
    lists.push_back(best.masked_fill(best == W, -1).to(torch::kInt));
  }
  return torch::stack(lists).unsqueeze(0);
}

/// Pairs of query and visible listed key, over all heads.
inline double listed_pairs(const SparseCase& c, const torch::Tensor& lists) {
  const auto M = static_cast<double>(c.group());
  const auto listed = (lists >= 0).sum().item<double>() * kBlock;
  if (c.tiles) return M * listed * kBlock;
  // Every token lists its own block, whose later keys it does not see.
  return M * (listed - static_cast<double>(c.G * c.N) * (kBlock - 1) / 2);
}

struct SparseInputs {
  torch::Tensor q, k, v, grad, lists;
  // Every case's inputs are larger than the L2 cache: one set of them measures no cache.
  explicit SparseInputs(const SparseCase& c)
      : q(gpu_normal({1, c.H, c.N, c.D}, 1).requires_grad_()),
        k(gpu_normal({1, c.G, c.N, c.D}, 2).requires_grad_()),
        v(gpu_normal({1, c.G, c.N, c.D}, 3).requires_grad_()),
        grad(gpu_normal({1, c.H, c.N, c.D}, 4)),
        lists(random_lists(c)) {}
};

inline BlockSparseInput operator_input(const SparseCase& c, const SparseInputs& x) {
  const torch::Tensor start = block_starts(c.N, kBlock);
  BlockSparseInput in{.q = x.q, .k = x.k, .v = x.v, .index = x.lists, .kv_start = start};
  if (c.tiles) in.q_start = start;
  else in.rank_q = in.rank_k = torch::arange(c.N);
  in.tables = block_tables(in);  // as a layer does, once
  return in;
}

/// Output and gradients of the last key/value head in float64: [M,N,D], [M,N,D], [N,D], [N,D].
inline Tensors exact_head(const SparseCase& c, const SparseInputs& x) {
  const torch::NoGradGuard no_grad;
  const int64_t W = c.blocks(), M = c.group();
  const auto last = [](const torch::Tensor& t, int64_t heads) {
    return t[0].slice(0, t.size(1) - heads).to(torch::kDouble);
  };
  const torch::Tensor q = last(x.q, M), grad = last(x.grad, M);
  const torch::Tensor k = last(x.k, 1)[0], v = last(x.v, 1)[0];
  const double scale = 1 / std::sqrt(static_cast<double>(c.D));
  const torch::Tensor out = torch::empty_like(q), grad_q = torch::empty_like(q);
  const torch::Tensor grad_k = torch::zeros_like(k), grad_v = torch::zeros_like(v);
  const torch::Tensor keys = torch::arange(c.N, k.options().dtype(torch::kInt64));
  const int64_t strip = std::max<int64_t>(128, 2048 / M);
  for (int64_t first = 0; first < c.N; first += strip) {
    const auto rows = [&](const torch::Tensor& t, int64_t axis) {
      return t.slice(axis, first, first + strip);
    };
    const torch::Tensor queries = rows(keys, 0);
    torch::Tensor list = x.lists[0][c.G - 1].to(torch::kInt64);
    list = list.index_select(0, c.tiles ? queries.div(kBlock, "floor") : queries);
    torch::Tensor visible = torch::zeros({queries.size(0), W + 1}, k.options().dtype(torch::kBool))
                                .scatter_(1, list.masked_fill(list < 0, W), true)
                                .index_select(1, keys.div(kBlock, "floor"));
    if (!c.tiles) visible = visible & (keys <= queries.unsqueeze(1));
    const torch::Tensor P = torch::softmax(
        (rows(q, 1).matmul(k.t()) * scale).masked_fill_(visible.logical_not(), -INFINITY), -1);
    const torch::Tensor o = P.matmul(v), g = rows(grad, 1);
    rows(out, 1).copy_(o);
    grad_v.add_(P.transpose(1, 2).matmul(g).sum(0));
    const torch::Tensor dS = P * (g.matmul(v.t()) - (g * o).sum(-1, true)) * scale;
    rows(grad_q, 1).copy_(dS.matmul(k));
    grad_k.add_(dS.transpose(1, 2).matmul(rows(q, 1)).sum(0));
  }
  return {out, grad_q, grad_k, grad_v};
}

}  // namespace sigma::bench
