// SIGMA_ATTENTION rules all operators of attention on an NVIDIA GPU, and multi-token attention
// needs memory for its tokens alone. Every test skips without one.
#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cstdlib>

#include "sigma/attention/multi_token_op.h"
#include "sigma/attention/path.h"
#include "sigma/attention/selection_gpu.h"
#include "tests/cuda/gpu_test.h"
#include "tests/testing/numbers.h"
#ifdef SIGMA_CUDA
#include <c10/cuda/CUDACachingAllocator.h>
#endif

namespace sigma {
namespace {

using torch::Tensor;

class PathCuda : public GpuTest {
 protected:
  void TearDown() override { unsetenv("SIGMA_ATTENTION"); }
};

// Kernels of `queries` and `keys` before and after the softmax; heads mix in pairs after it.
MultiTokenInput multi_token(const TokenLayout& layout, int64_t H, std::vector<GridStep> queries,
                            std::vector<GridStep> keys) {
  MultiTokenInput in{.layout = layout};
  const auto device = [](const Tensor& x, torch::ScalarType dtype) {
    return x.to(torch::kCUDA, dtype).requires_grad_();
  };
  uint32_t site = 1;
  for (Tensor* x : {&in.q, &in.k, &in.v})
    *x = device(normal({1, H, layout.tokens(), 64}, site++, torch::kFloat), torch::kBFloat16);
  const auto a = static_cast<int64_t>(queries.size()), b = static_cast<int64_t>(keys.size());
  for (ScoreMixing* m : {&in.before, &in.after})
    *m = {.kernel = device(normal({H, a, b}, site++) * 0.2, torch::kFloat),
          .queries = queries,
          .keys = keys,
          .mix = {}};
  in.after.mix = device(normal({H / 2, 2, 2}, site++), torch::kFloat);
  return in;
}

TEST_F(PathCuda, TheEnvironmentRulesSelectionAndMultiTokenAttention) {
  const MultiTokenInput in =
      multi_token({.grid = {1, 1, 200}}, 2, centred_steps({1, 1, 3}), centred_steps({1, 1, 5}));
  const BlockGeometry geometry = block_geometry({.grid = {1, 8, 8}}, {1, 4, 4});
  SelectionConfig config;
  config.num_selected = 2;
  const SelectionTables tables =
      selection_tables(config, geometry, torch::arange(4), false, torch::kCUDA);
  const SelectionInput scores{.q = normal({1, 1, 64, 64}, 1, torch::kFloat).to(torch::kCUDA),
                              .ck = normal({1, 1, 4, 64}, 2, torch::kFloat).to(torch::kCUDA)};
  setenv("SIGMA_ATTENTION", "reference", 1);
  const Tensor exact = multi_token_attention(in).out.to(torch::kFloat);
  EXPECT_FALSE(select_blocks_gpu(config, geometry, tables, scores).defined());
  for (const std::string path : {"portable", "hopper"}) {
    setenv("SIGMA_ATTENTION", path.c_str(), 1);
    EXPECT_TRUE(select_blocks_gpu(config, geometry, tables, scores).defined());
    const AttentionOutput out = multi_token_attention(in);
    // torch's kernels keep no lse of S'.
    EXPECT_EQ(out.lse.defined(), path == "hopper" && device_path(in.q) == AttentionPath::kHopper);
    EXPECT_LE((out.out - exact).norm().item<double>(), 5 * 0x1p-8 * exact.norm().item<double>());
  }
}

#ifdef SIGMA_CUDA
TEST_F(PathCuda, MultiTokenAttentionNeedsLinearMemory) {
  const auto peak = [](const MultiTokenInput& in) {
    c10::cuda::CUDACachingAllocator::resetPeakStats(0);
    const auto now = [] {
      return c10::cuda::CUDACachingAllocator::getDeviceStats(0).allocated_bytes[0];
    };
    const int64_t before = now().current;
    const Tensor out = multi_token_attention(in).out;
    torch::autograd::grad({out.to(torch::kFloat).square().sum()},
                          {in.q, in.k, in.v, in.before.kernel, in.after.kernel, in.after.mix});
    return static_cast<double>(now().peak - before);
  };
  const auto square = [](int64_t side) {
    return multi_token({.grid = {1, side, side}}, 8, centred_steps({1, 3, 3}),
                       centred_steps({1, 3, 3}));
  };
  const auto causal = [](int64_t N) {
    return multi_token({.grid = {1, 1, N}, .pattern = Pattern::kCausal}, 8, past_steps({1, 1, 2}),
                       centred_steps({1, 1, 3}));
  };
  // Four times the tokens: sixteen times the pairs.
  for (const auto& [what, few, many] :
       {std::tuple{"square", peak(square(48)), peak(square(96))},
        std::tuple{"causal", peak(causal(2048)), peak(causal(8192))}}) {
    std::printf("%s: %.0f MB, %.0f MB\n", what, few / 1e6, many / 1e6);
    EXPECT_LE(many, 4.5 * few) << what;
  }
}
#endif

}  // namespace
}  // namespace sigma
