// Block-sparse attention on the CPU against torch's dense attention and a plain gather, and
// multi-token attention against its score maps, in one run.
//   build/bench/attention_cpu [ROW ...] [--json] [--check]
// Rows: tiles, tokens, coherent, gather, multi_token, layer, long; default all.
//
// Floor: 2 (D + Dv) operations a listed (query, key) pair and head; q, k, v and out move once.
// A ratio is theirs over ours: above 1 is faster. --check exits 1 when a goal is missed.
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <functional>

#include "bench/peak_memory.h"
#include "bench/timing.h"
#include "sigma/attention/block_plan.h"
#include "sigma/attention/block_sparse.h"
#include "sigma/attention/dense.h"
#include "sigma/attention/multi_token_op.h"
#include "sigma/attention/sparse.h"
#include "sigma/base/config.h"

namespace {

using namespace sigma::bench;
using sigma::BlockSparseInput;
using torch::Tensor;

constexpr int64_t kHeads = 8;
constexpr int64_t kDim = 64;
constexpr int64_t kBlock = 64;
constexpr int kThreads = 2;

// Lists of the blocks with the largest noise, for rows that may see `allowed` blocks.
Tensor random_lists(int64_t rows, int64_t W, int64_t n, const Tensor& allowed, uint32_t site) {
  Tensor noise = normal({kHeads, rows, W}, site);
  if (allowed.defined()) noise = noise.masked_fill(torch::arange(W) >= allowed.unsqueeze(1), -1e9);
  const Tensor best = std::get<1>(noise.topk(std::min(n, W), -1));
  Tensor lists = best.to(torch::kInt);
  if (allowed.defined()) lists = lists.masked_fill(best >= allowed.unsqueeze(1), -1);
  return lists.unsqueeze(0).contiguous();
}

struct Row {
  std::string name;
  double ours = 0, ours_both = 0, theirs = 0, theirs_both = 0, gflops = 0;
  double memory = 0, memory_ratio = 0;  // with gradients
  double goal = 0, goal_both = 0, goal_memory = 0;
};

struct Inputs {
  Tensor q, k, v, grad;
  explicit Inputs(int64_t N)
      : q(normal({1, kHeads, N, kDim}, 1).requires_grad_()),
        k(normal({1, kHeads, N, kDim}, 2).requires_grad_()),
        v(normal({1, kHeads, N, kDim}, 3).requires_grad_()),
        grad(normal({1, kHeads, N, kDim}, 4)) {}
};

Row compare(const std::string& name, const Inputs& x, const BlockSparseInput& in, bool causal,
            double pairs, double goal, double goal_both, int repeats) {
  const auto ours = [&] { return sigma::block_sparse_attention(in).out; };
  const auto dense = [&] {
    return at::scaled_dot_product_attention(x.q, x.k, x.v, {}, 0.0, causal);
  };
  Row row{.name = name, .goal = goal, .goal_both = goal_both};
  row.ours = forward_seconds(ours, repeats);
  row.theirs = forward_seconds(dense, repeats);
  row.ours_both = both_seconds(ours, x.grad, repeats);
  row.theirs_both = both_seconds(dense, x.grad, repeats);
  row.gflops = 4 * pairs * kDim * kHeads / row.ours / 1e9;
  return row;
}

Row tiles(int64_t N, double goal, double goal_both, int repeats) {
  const Inputs x(N);
  const auto geometry = sigma::block_geometry({.grid = {1, 1, N}}, {1, 1, kBlock});
  const int64_t W = geometry.blocks;
  const BlockSparseInput in{.q = x.q,
                            .k = x.k,
                            .v = x.v,
                            .index = random_lists(W, W, W / 8, {}, 5),
                            .kv_start = geometry.start,
                            .q_start = geometry.start};
  return compare(fmt::format("tiles, 1/8 of the blocks, N {}", N), x, in, false,
                 static_cast<double>(N) * static_cast<double>(N) / 8, goal, goal_both, repeats);
}

// Causal lists of 16 blocks a token; `common` of each are those of its 64 neighbours.
Row tokens(int64_t N, double common, double goal, int repeats) {
  const Inputs x(N);
  const auto geometry = sigma::block_geometry({.grid = {1, 1, N}}, {1, 1, kBlock});
  const int64_t W = geometry.blocks;
  const int64_t n = 16;
  const Tensor allowed = geometry.block_of + 1;
  Tensor lists = random_lists(N, W, n, allowed, 6);
  if (common > 0) {
    const auto shared = static_cast<int64_t>(common * n);
    const Tensor tile =
        random_lists(W, W, n, torch::arange(W) + 1, 7).index_select(2, geometry.block_of);
    lists = torch::cat({tile.slice(3, 0, shared), lists.slice(3, 0, n - shared)}, 3);
    // A block twice is one block.
    const Tensor sorted = std::get<0>(lists.sort(3));
    const Tensor twice =
        torch::constant_pad_nd(sorted.slice(3, 1) == sorted.slice(3, 0, -1), {1, 0});
    lists = sorted.masked_fill(twice, -1).contiguous();
  }
  const BlockSparseInput in{.q = x.q,
                            .k = x.k,
                            .v = x.v,
                            .index = lists,
                            .kv_start = geometry.start,
                            .rank_q = geometry.rank(),
                            .rank_k = geometry.rank()};
  const double listed = (lists >= 0).sum().item<double>() / kHeads;
  // The own block counts half.
  return compare(fmt::format("token rows, causal, n 16, {:.0f} % common, N {}", common * 100, N), x,
                 in, true, listed * kBlock - static_cast<double>(N) * kBlock / 2, goal, goal,
                 repeats);
}

// What a direct implementation does: keys and values copied for every query.
Row gather(int64_t N, int repeats) {
  const Inputs x(N);
  const auto geometry = sigma::block_geometry({.grid = {1, 1, N}}, {1, 1, kBlock});
  const int64_t W = geometry.blocks;
  const Tensor lists = random_lists(N, W, 16, {}, 8);
  const BlockSparseInput in{
      .q = x.q, .k = x.k, .v = x.v, .index = lists, .kv_start = geometry.start};
  const auto direct = [&] {
    std::vector<Tensor> outs;
    for (int64_t h = 0; h < kHeads; ++h) {
      for (int64_t first = 0; first < N; first += 256) {  // all queries at once need 17 GB
        const Tensor list = lists[0][h].slice(0, first, first + 256).to(torch::kInt64);
        const auto rows = [&](const Tensor& t) {
          return t[0][h].view({W, kBlock, kDim}).index({list}).flatten(1, 2);
        };
        const Tensor q = x.q[0][h].slice(0, first, first + 256).unsqueeze(1);
        outs.push_back(sigma::attention_reference(q, rows(x.k), rows(x.v), false));
      }
    }
    return torch::cat(outs).view({1, kHeads, N, kDim});
  };
  const auto ours = [&] { return sigma::block_sparse_attention(in).out; };
  Row row{.name = fmt::format("token rows, n 16, against a gather a query, N {}", N), .goal = 20};
  row.ours = forward_seconds(ours, repeats);
  row.theirs = forward_seconds(direct, 1);
  row.gflops = 4.0 * static_cast<double>(N) * 16 * kBlock * kDim * kHeads / row.ours / 1e9;
  return row;
}

Row layer(int repeats) {
  const sigma::TokenLayout layout{.grid = {8, 32, 32}};
  const int64_t N = layout.tokens();
  sigma::SparseAttention sparse({}, kHeads * kDim, kHeads, false, layout.grid);
  sigma::DenseAttention dense(kHeads * kDim, kHeads, false);
  initialize(sparse, 1);
  initialize(dense, 1);
  const Tensor x = normal({1, N, kHeads * kDim}, 9).requires_grad_();
  const Tensor grad = normal({1, N, kHeads * kDim}, 10);
  const auto ours = [&] { return sparse.forward(x, layout, nullptr, {}); };
  const auto theirs = [&] { return dense.forward(x, layout, nullptr, {}); };
  Row row{.name = "whole layer, 8 x 32 x 32, n 16 of 128 blocks", .goal_both = 2.5};
  row.ours = forward_seconds(ours, repeats);
  row.theirs = forward_seconds(theirs, repeats);
  row.ours_both = both_seconds(ours, grad, repeats);
  row.theirs_both = both_seconds(theirs, grad, repeats);
  row.gflops = sparse.flops(layout) / row.ours / 1e9;
  return row;
}

// The published formulation: whole score maps, convolved by torch.
Row multi_token(int64_t N, int repeats) {
  const Inputs x(N);
  const auto kernel = [](uint32_t site) {
    return (normal({kHeads, 6, 11}, site) * 0.2).requires_grad_();
  };
  sigma::MultiTokenInput in{.q = x.q, .k = x.k, .v = x.v, .layout = {.grid = {1, 1, N}}};
  in.before = {.kernel = kernel(11),
               .queries = sigma::past_steps({1, 1, 6}),
               .keys = sigma::centred_steps({1, 1, 11})};
  in.after = in.before;
  in.after.kernel = kernel(12);
  const auto ours = [&] { return sigma::multi_token_attention(in).out; };
  const auto convolved = [](const Tensor& maps, const Tensor& weight) {
    return at::conv2d(torch::constant_pad_nd(maps, {5, 5, 5, 0}), weight.flip({1, 2}).unsqueeze(1),
                      Tensor(), torch::IntArrayRef{1}, torch::IntArrayRef{0}, torch::IntArrayRef{1},
                      kHeads);
  };
  const auto maps = [&] {
    const Tensor scores = torch::matmul(x.q, x.k.transpose(-1, -2)) / std::sqrt(kDim);
    const Tensor P = torch::softmax(convolved(scores, in.before.kernel), -1);
    return torch::matmul(convolved(P, in.after.kernel), x.v);
  };
  Row row{.name = fmt::format("multi-token 6 x 11, against score maps, N {}", N),
          .goal = 4,
          .goal_both = 4,
          .goal_memory = 10};
  row.memory = peak_bytes([&] { ours().backward(x.grad); });
  row.memory_ratio = peak_bytes([&] { maps().backward(x.grad); }) / row.memory;
  row.ours = forward_seconds(ours, repeats);
  row.theirs = forward_seconds(maps, repeats);
  row.ours_both = both_seconds(ours, x.grad, repeats);
  row.theirs_both = both_seconds(maps, x.grad, repeats);
  const auto pairs = static_cast<double>(N * N * kHeads);
  row.gflops = pairs * (4 * kDim + 4 * 66) / row.ours / 1e9;
  return row;
}

}  // namespace

int main(int argc, char** argv) {
  at::set_num_threads(kThreads);
  const bool json = flag(argc, argv, "--json");
  bool missed = false;
  if (!json)
    fmt::print("{:58} {:>10} {:>8} {:>12} {:>9}\n", "CPU, float32, 2 threads, H 8, D 64",
               "forward ms", "ratio", "with grad ms", "ratio");
  std::vector<std::string> names;
  for (int i = 1; i < argc; ++i)
    if (argv[i][0] != '-') names.emplace_back(argv[i]);
  // The last takes minutes, nearly all of them in dense attention: once each, unwarmed.
  const std::vector<std::pair<std::string, std::function<Row()>>> rows = {
      {"tiles", [] { return tiles(8192, 4, 3.5, 3); }},
      {"tokens", [] { return tokens(8192, 0, 1, 1); }},
      {"coherent", [] { return tokens(8192, 0.75, 3, 1); }},
      {"gather", [] { return gather(4096, 3); }},
      {"multi_token", [] { return multi_token(4096, 3); }},
      {"layer", [] { return layer(1); }},
      {"long", [] { return tiles(32768, 5, 4.5, 1); }}};
  for (const auto& [name, make] : rows) {
    if (!names.empty() && std::find(names.begin(), names.end(), name) == names.end()) continue;
    const Row r = make();
    const double ratio = r.theirs / r.ours;
    const double ratio_both = r.ours_both > 0 ? r.theirs_both / r.ours_both : 0;
    const bool miss = ratio < r.goal || (r.goal_both > 0 && ratio_both < r.goal_both) ||
                      r.memory_ratio < r.goal_memory;
    missed = missed || miss;
    if (json) {
      fmt::print("{}\n", sigma::Json({{"case", r.name},
                                      {"forward_ms", r.ours * 1e3},
                                      {"forward_ratio", ratio},
                                      {"with_grad_ms", r.ours_both * 1e3},
                                      {"with_grad_ratio", ratio_both},
                                      {"forward_gflops", r.gflops},
                                      {"with_grad_mb", r.memory / 1e6},
                                      {"with_grad_memory_ratio", r.memory_ratio},
                                      {"goals", {r.goal, r.goal_both, r.goal_memory}}})
                             .dump());
    } else {
      fmt::print("{:58} {:10.1f} {:8.2f} {:12.1f} {:9.2f}  {:.0f} GFLOP/s{}\n", r.name,
                 r.ours * 1e3, ratio, r.ours_both * 1e3, ratio_both, r.gflops,
                 miss ? fmt::format("  goal {} / {} missed", r.goal, r.goal_both) : "");
      if (r.memory > 0)
        fmt::print("{:58} {:10.0f} MB, 1/{:.0f} of theirs\n", "", r.memory / 1e6, r.memory_ratio);
    }
    std::fflush(stdout);
  }
  return flag(argc, argv, "--check") && missed ? 1 : 0;
}
