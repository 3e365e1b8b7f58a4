// Attention without N x N buffers: the memory that a forward and a backward take.
#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include "bench/peak_memory.h"
#include "sigma/attention/block_plan.h"
#include "sigma/attention/block_sparse.h"
#include "sigma/attention/multi_token_op.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr double kFloat = 4;

double both_passes(const std::function<Tensor()>& f) {
  return bench::peak_bytes([&] { f().sum().backward(); });
}

Tensor leaf(int64_t H, int64_t N, uint32_t site) {
  return normal({1, H, N, 64}, site, torch::kFloat).requires_grad_();
}

TEST(Memory, BlockSparseIsLinearInTokens) {
  constexpr int64_t N = 32768, n = 16;
  BlockSparseInput in{.q = leaf(1, N, 1), .k = leaf(1, N, 2), .v = leaf(1, N, 3)};
  in.kv_start = block_starts(N, 64);
  // Own and 15 other blocks of earlier tokens, a list a token.
  const Tensor own = torch::arange(N).div(64, "floor").unsqueeze(1);
  const Tensor step = torch::arange(n).unsqueeze(0);
  in.index = (own - step * own.div(n, "floor").clamp_min(1)).clamp_min(-1).to(torch::kInt);
  in.index = in.index.view({1, 1, N, n}).contiguous();
  in.rank_q = in.rank_k = torch::arange(N);
  const double peak = both_passes([&] { return block_sparse_attention(in).out; });
  if (peak < 0) GTEST_SKIP() << "/proc/self/clear_refs cannot be written";
  // Lists and lists turned round; q, k, v, out, their gradients and panels; a few buffers a thread.
  const double bound = 24.0 * N * n + 16.0 * N * 64 * kFloat + 32e6;
  EXPECT_LT(peak, bound);
  EXPECT_LT(bound, kFloat * N * N / 20);
  EXPECT_GT(peak, kFloat * N * 64) << "the counter works";
}

TEST(Memory, MultiTokenKeepsNoScoreMaps) {
  constexpr int64_t N = 4096, H = 4;
  MultiTokenInput in{.q = leaf(H, N, 1), .k = leaf(H, N, 2), .v = leaf(H, N, 3)};
  in.layout.grid = {1, 1, N};
  in.before = {.kernel = normal({H, 3, 5}, 4, torch::kFloat).requires_grad_(),
               .queries = centred_steps({1, 1, 3}),
               .keys = centred_steps({1, 1, 5})};
  in.after = in.before;
  const double peak = both_passes([&] { return multi_token_attention(in).out; });
  if (peak < 0) GTEST_SKIP() << "/proc/self/clear_refs cannot be written";
  // The definition keeps scores, their convolution, probabilities and their convolution.
  EXPECT_LT(peak, 4 * kFloat * H * N * N / 10);
}

}  // namespace
}  // namespace sigma
