// The block-sparse kernels without torch, so that the sanitizers see every access: random shapes,
// lists with ids that do not exist, masks, empty tensors. Values are tested in tests/attention.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "sigma/attention/kernels/block_sparse.h"

namespace sigma::kernels {
namespace {

class Shapes {
 public:
  explicit Shapes(uint32_t seed) : random_(seed) {}
  int64_t below(int64_t n) { return static_cast<int64_t>(random_() % static_cast<uint64_t>(n)); }
  bool coin() { return below(2) == 1; }
  std::vector<float> numbers(int64_t count) {
    std::vector<float> out(static_cast<size_t>(count));
    for (float& x : out) x = static_cast<float>(below(1000)) / 500 - 1;
    return out;
  }
  // Cuts [0, total] into parts of at most `longest`.
  std::vector<int64_t> cuts(int64_t total, int64_t longest) {
    std::vector<int64_t> out = {0};
    while (out.back() < total) out.push_back(std::min(out.back() + 1 + below(longest), total));
    return out;
  }

 private:
  std::mt19937 random_;  // of this test only: the library's numbers need torch
};

std::vector<int64_t> ranks(int64_t count) {
  std::vector<int64_t> out(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) out[static_cast<size_t>(i)] = i;
  return out;
}

TEST(BlockSparseKernels, StayInsideTheirTensorsAndFinite) {
  for (uint32_t seed = 0; seed < 60; ++seed) {
    Shapes s(seed);
    BlockSparse a;
    a.B = 1 + s.below(2);
    a.G = 1 + s.below(2);
    a.H = a.G * (1 + s.below(3));
    a.Nq = s.below(140);
    a.Nk = s.below(140);
    a.D = 16 * (1 + s.below(3));
    a.Dv = 16 * (1 + s.below(3));
    const std::vector<int64_t> kv_start = s.cuts(a.Nk, 1 + s.below(40));
    const std::vector<int64_t> q_start = s.cuts(a.Nq, 100);
    const bool tiles = s.coin();
    a.W = static_cast<int64_t>(kv_start.size()) - 1;
    a.R = tiles ? static_cast<int64_t>(q_start.size()) - 1 : a.Nq;
    a.n = s.below(5);
    const auto q = s.numbers(a.B * a.H * a.Nq * a.D);
    const auto k = s.numbers(a.B * a.G * a.Nk * a.D);
    const auto v = s.numbers(a.B * a.G * a.Nk * a.Dv);
    const auto grad_out = s.numbers(a.B * a.H * a.Nq * a.Dv);
    std::vector<int32_t> index;
    for (int64_t row = 0; row < a.B * a.G * a.R; ++row) {
      std::set<int32_t> listed;
      for (int64_t i = 0; i < a.n; ++i) {
        // -1 and ids up to two beyond the last block name none.
        const auto id = static_cast<int32_t>(s.below(a.W + 3) - 1);
        index.push_back(listed.insert(id).second ? id : -1);
      }
    }
    const auto rank_q = ranks(a.Nq);
    const auto rank_k = ranks(a.Nk);
    const auto valid = std::make_unique<bool[]>(static_cast<size_t>(a.B * a.Nk + 1));
    for (int64_t i = 0; i < a.B * a.Nk; ++i) valid[static_cast<size_t>(i)] = s.below(4) != 0;
    std::vector<float> out(grad_out.size(), NAN), grad_q(q.size(), NAN), grad_k(k.size(), NAN),
        grad_v(v.size(), NAN);
    std::vector<float> lse(static_cast<size_t>(a.B * a.H * a.Nq), NAN), delta(lse.size(), NAN);
    a.q = q.data();
    a.k = k.data();
    a.v = v.data();
    a.index = index.data();
    a.q_start = tiles ? q_start.data() : nullptr;
    a.kv_start = kv_start.data();
    if (s.coin()) {
      a.rank_q = rank_q.data();
      a.rank_k = rank_k.data();
      a.window = s.coin() ? 7 : 0;
    }
    a.key_valid = s.coin() ? valid.get() : nullptr;
    a.scale = 0.3f;
    a.out = out.data();
    a.lse = lse.data();
    BlockSparseWork work = block_sparse_work(a, /*backward=*/true);
    block_sparse_pack(a, work, 0, a.B * a.G);
    const BlockSparseGrad g{.grad_out = grad_out.data(),
                            .delta = delta.data(),
                            .grad_q = grad_q.data(),
                            .grad_k = grad_k.data(),
                            .grad_v = grad_v.data()};
    const int64_t tasks = a.B * a.G * static_cast<int64_t>(work.chunks.size());
    for (int64_t i = 0; i < tasks; ++i) block_sparse_forward(a, work, i);
    for (int64_t i = 0; i < tasks; ++i) block_sparse_grad_q(a, g, work, i);
    for (int64_t i = 0; i < a.B * a.G * a.W; ++i) block_sparse_grad_kv(a, g, work, i);
    for (const auto* values : {&out, &grad_q, &grad_k, &grad_v}) {
      EXPECT_TRUE(std::all_of(values->begin(), values->end(), [](float x) {
        return std::isfinite(x);
      })) << seed;
    }
  }
}

}  // namespace
}  // namespace sigma::kernels
