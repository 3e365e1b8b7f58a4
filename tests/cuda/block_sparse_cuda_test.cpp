// Block-sparse attention on an NVIDIA GPU against the definition in float64 on the CPU. Every test
// skips without one.
#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cstdlib>

#include "sigma/attention/block_sparse_gpu.h"
#include "sigma/attention/sparse.h"
#include "sigma/base/error.h"
#include "sigma/nn/rope.h"
#include "tests/cuda/block_sparse_bounds.h"
#include "tests/cuda/gpu_test.h"
#ifdef SIGMA_CUDA
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#endif

namespace sigma {
namespace {

using torch::Tensor;
using Case = BlockSparseCase;
using Result = BlockSparseResult;

class BlockSparseCuda : public PoisonedGpuTest {
 protected:
  void TearDown() override {
    PoisonedGpuTest::TearDown();
    unsetenv("SIGMA_ATTENTION");
  }
};

std::vector<Case> gpu_cases() {
  std::vector<Case> out = kBlockSparseCases;
  const std::vector<Case> more = {
      {.name = "blocks of 64",
       .B = 2,
       .H = 4,
       .G = 2,
       .Nq = 300,
       .Nk = 300,
       .D = 64,
       .Dv = 64,
       .S = 64,
       .n = 3,
       .tiles = true},
      {.name = "D 128, causal",
       .H = 2,
       .G = 1,
       .Nq = 333,
       .Nk = 333,
       .D = 128,
       .Dv = 128,
       .S = 64,
       .n = 4,
       .tiles = true,
       .causal = true},
      {.name = "token rows of 16 heads",
       .B = 2,
       .H = 32,
       .G = 2,
       .Nq = 201,
       .Nk = 201,
       .D = 128,
       .Dv = 128,
       .S = 64,
       .n = 3,
       .causal = true},
      {.name = "a warp a token",
       .B = 2,
       .H = 32,
       .G = 2,
       .Nq = 401,
       .Nk = 401,
       .D = 128,
       .Dv = 128,
       .S = 64,
       .n = 2,
       .causal = true},
      {.name = "a warp two tokens",
       .B = 4,
       .H = 16,
       .G = 2,
       .Nq = 401,
       .Nk = 450,
       .D = 128,
       .Dv = 128,
       .S = 50,
       .n = 2,
       .invalid_keys = true},
      {.name = "token rows, every head its own",
       .H = 3,
       .G = 3,
       .Nq = 391,
       .Nk = 391,
       .D = 64,
       .Dv = 64,
       .S = 64,
       .n = 4,
       .causal = true},
      {.name = "three heads a group",
       .H = 6,
       .G = 2,
       .Nq = 100,
       .Nk = 130,
       .D = 80,
       .Dv = 48,
       .S = 32,
       .n = 3},
      {.name = "64 heads a group",
       .H = 64,
       .G = 1,
       .Nq = 40,
       .Nk = 90,
       .D = 64,
       .Dv = 64,
       .S = 64,
       .n = 2},
      {.name = "window",
       .H = 2,
       .G = 2,
       .Nq = 260,
       .Nk = 260,
       .D = 64,
       .Dv = 64,
       .S = 64,
       .n = 4,
       .causal = true,
       .window = 70},
      {.name = "invalid keys",
       .B = 2,
       .H = 4,
       .G = 2,
       .Nq = 150,
       .Nk = 150,
       .D = 64,
       .Dv = 64,
       .S = 64,
       .n = 3,
       .tiles = true,
       .invalid_keys = true},
      {.name = "tokens that agree little",
       .H = 64,
       .G = 64,
       .Nq = 400,
       .Nk = 400,
       .D = 128,
       .Dv = 128,
       .S = 8,
       .n = 4,
       .causal = true},
      {.name = "tokens that agree little, two heads a group, invalid keys",
       .H = 64,
       .G = 32,
       .Nq = 400,
       .Nk = 400,
       .D = 64,
       .Dv = 64,
       .S = 8,
       .n = 4,
       .invalid_keys = true},
      {.name = "all queries list the first block",
       .H = 1,
       .G = 1,
       .Nq = 5000,
       .Nk = 200,
       .D = 64,
       .Dv = 64,
       .S = 64,
       .n = 4},
  };
  out.insert(out.end(), more.begin(), more.end());
  return out;
}

TEST_F(BlockSparseCuda, PathsMatchTheDefinition) {
  for (const Case& c : gpu_cases()) {
    const BlockSparseInput in = input_of(c);
    for (const auto dtype : {torch::kBFloat16, torch::kHalf}) {
      BlockSparseInput rounded = in;  // the definition starts from the same numbers
      for (Tensor* x : {&rounded.q, &rounded.k, &rounded.v}) *x = x->to(dtype).to(torch::kDouble);
      const Tensor grad_out = normal({c.B, c.H, c.Nq, c.Dv}, 4).to(dtype).to(torch::kDouble);
      const Result expected =
          run(block_sparse_attention_reference, rounded, torch::kDouble, grad_out);
      const Result bound =
          c.Nq == 0 ? expected : block_sparse_bounds(rounded, expected, grad_out, dtype);
      for (const std::string path : {"portable", "hopper"}) {
        setenv("SIGMA_ATTENTION", path.c_str(), 1);
        const Result actual =
            run(block_sparse_attention, on_gpu(rounded, dtype), dtype, grad_out.to(torch::kCUDA));
        const auto check = [&](const char* what, const Tensor& on_device, const Tensor& b,
                               const Tensor& most) {
          const Tensor a = on_device.cpu().to(torch::kDouble);
          EXPECT_TRUE(torch::equal(a.isinf(), b.isinf())) << c.name << " " << path << " " << what;
          const Tensor gap = (a - b).abs().masked_fill(b.isinf(), 0);
          EXPECT_TRUE((gap <= most).all().item<bool>())  // not so for NaN
              << c.name << ", " << path << ", " << torch::toString(dtype) << ", " << what
              << ": largest difference " << gap.max() << ", over its bound " << (gap / most).max();
        };
        if (c.Nq == 0) continue;
        check("out", actual.out, expected.out, bound.out);
        check("lse", actual.lse, expected.lse, bound.lse);
        check("grad q", actual.grad_q, expected.grad_q, bound.grad_q);
        check("grad k", actual.grad_k, expected.grad_k, bound.grad_k);
        check("grad v", actual.grad_v, expected.grad_v, bound.grad_v);
      }
    }
  }
}

const Case kLarge{.name = "large",
                  .B = 2,
                  .H = 8,
                  .G = 2,
                  .Nq = 3000,
                  .Nk = 3000,
                  .D = 64,
                  .Dv = 64,
                  .S = 64,
                  .n = 8,
                  .causal = true};

TEST_F(BlockSparseCuda, RerunsAreEqualToTheBit) {
  const BlockSparseInput in = on_gpu(input_of(kLarge), torch::kBFloat16);
  const Tensor grad_out = normal({2, 8, 3000, 64}, 4).to(torch::kCUDA);
  for (const char* path : {"portable", "hopper"}) {
    setenv("SIGMA_ATTENTION", path, 1);
    const Result first = run(block_sparse_attention, in, torch::kBFloat16, grad_out);
    for (int i = 0; i < 20; ++i) {
      const Result again = run(block_sparse_attention, in, torch::kBFloat16, grad_out);
      EXPECT_TRUE(torch::equal(first.out, again.out)) << path;
      EXPECT_TRUE(torch::equal(first.grad_q, again.grad_q)) << path;
      EXPECT_TRUE(torch::equal(first.grad_k, again.grad_k)) << path;
      EXPECT_TRUE(torch::equal(first.grad_v, again.grad_v)) << path;
    }
  }
}

TEST_F(BlockSparseCuda, ViewsGiveTheBitsOfTheirCopies) {
  BlockSparseInput in = on_gpu(input_of(kLarge), torch::kBFloat16);
  const Tensor expected = block_sparse_attention(in).out;
  for (Tensor* x : {&in.q, &in.k, &in.v}) *x = x->transpose(1, 2).contiguous().transpose(1, 2);
  in.index = in.index.transpose(2, 3).contiguous().transpose(2, 3);
  EXPECT_TRUE(torch::equal(block_sparse_attention(in).out, expected));
}

TEST_F(BlockSparseCuda, OffsetsBeyond32Bits) {
  // 2^31 + 2^23 elements of q; the last rows are those of a small problem.
  const int64_t H = 257, N = 65536, D = 128;
  const auto options = torch::TensorOptions(torch::kCUDA).dtype(torch::kBFloat16);
  const torch::NoGradGuard no_grad;
  at::globalContext().setDeterministicFillUninitializedMemory(false);  // time
  BlockSparseInput in{.q = torch::empty({1, H, N, D}, options).fill_(0.5),
                      .k = normal({1, 1, 512, D}, 1).to(options),
                      .v = normal({1, 1, 512, D}, 2).to(options),
                      .kv_start = block_starts(512, 64),
                      .q_start = block_starts(N, 64)};
  in.index = torch::arange(4, torch::kInt).to(torch::kCUDA).expand({1, 1, N / 64, 4});
  const Tensor last = normal({1, 1, 64, D}, 3).to(options);
  in.q.slice(1, H - 1).slice(2, N - 64).copy_(last);
  for (const char* path : {"portable", "hopper"}) {
    setenv("SIGMA_ATTENTION", path, 1);
    const Tensor out = block_sparse_attention(in).out;
    BlockSparseInput small = in;
    small.q = last;
    small.q_start = block_starts(64, 64);
    small.index = in.index.slice(2, 0, 1);
    EXPECT_TRUE(
        torch::equal(out.slice(1, H - 1).slice(2, N - 64), block_sparse_attention(small).out))
        << path;
  }
}

#ifdef SIGMA_CUDA
TEST_F(BlockSparseCuda, AGraphReplaysWithNewListsAndNothingWaits) {
  BlockSparseInput in = on_gpu(input_of(kLarge), torch::kBFloat16);
  in.tables = block_tables(in);
  const Tensor grad_out = normal({2, 8, 3000, 64}, 4).to(torch::kCUDA, torch::kBFloat16);
  for (Tensor* x : {&in.q, &in.k, &in.v}) x->requires_grad_();
  const auto both = [&] {
    const Tensor out = block_sparse_attention(in).out;
    auto grads = torch::autograd::grad({out}, {in.q, in.k, in.v}, {grad_out});
    grads.push_back(out.detach());
    return grads;
  };
  const c10::cuda::CUDAStreamGuard guard(c10::cuda::getStreamFromPool());
  both();  // what is made once
  c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_ERROR);
  at::cuda::CUDAGraph graph;
  graph.capture_begin();
  const std::vector<Tensor> replayed = both();
  graph.capture_end();
  c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_DISABLED);
  in.index.copy_(in.index.flip(2).contiguous());
  graph.replay();
  const std::vector<Tensor> expected = both();
  for (size_t i = 0; i < expected.size(); ++i)
    EXPECT_TRUE(torch::equal(replayed[i], expected[i])) << i;
}

// Scores, choice, branches and gates: nothing waits for the host, and a replay follows new tokens.
TEST_F(BlockSparseCuda, TheLayerIsCapturable) {
  SparseConfig cubes;
  cubes.selection.num_selected = 4;
  SparseConfig paper = nsa_paper();
  paper.window = 128;
  paper.selection.num_selected = 6;
  const std::vector<std::pair<SparseConfig, TokenLayout>> cases = {
      {cubes, {.before = 3, .grid = {8, 9, 16}}},
      {paper, {.before = 2, .grid = {1, 1, 1000}, .pattern = Pattern::kCausal}}};
  for (const auto& [config, layout] : cases) {
    SparseAttention attention(config, 256, 4, /*qk_norm=*/true, layout.grid);
    initialize(attention, 1);
    attention.to(torch::kCUDA);
    RopeConfig rope_config;
    rope_config.kind = "axial";
    const Rope rope(rope_config, 64, layout, torch::kFloat, torch::kCUDA);
    const Tensor x = normal({2, layout.tokens(), 256}, 3).to(torch::kCUDA, torch::kBFloat16);
    const Tensor grad_out = normal(x.sizes(), 4).to(torch::kCUDA, torch::kBFloat16);
    x.requires_grad_();
    std::vector<Tensor> leaves = {x};
    for (const Tensor& p : attention.parameters()) leaves.push_back(p);
    const auto both = [&] {
      const Tensor out = attention.forward(x, layout, &rope, {.dtype = torch::kBFloat16});
      auto grads = torch::autograd::grad({out}, leaves, {grad_out}, /*retain_graph=*/std::nullopt,
                                         /*create_graph=*/false, /*allow_unused=*/true);
      grads.push_back(out.detach());
      return grads;
    };
    const c10::cuda::CUDAStreamGuard guard(c10::cuda::getStreamFromPool());
    both();  // what is made once
    c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_ERROR);
    at::cuda::CUDAGraph graph;
    graph.capture_begin();
    const std::vector<Tensor> replayed = both();
    graph.capture_end();
    c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_DISABLED);
    {
      const torch::NoGradGuard no_grad;
      x.copy_(normal(x.sizes(), 5));
    }
    graph.replay();
    const std::vector<Tensor> expected = both();
    for (size_t i = 0; i < expected.size(); ++i)
      if (expected[i].defined()) EXPECT_TRUE(torch::equal(replayed[i], expected[i])) << i;
  }
}
#endif

TEST_F(BlockSparseCuda, TheEnvironmentNamesAPath) {
  const BlockSparseInput in = on_gpu(input_of(kLarge), torch::kBFloat16);
  setenv("SIGMA_ATTENTION", "reference", 1);
  EXPECT_EQ(block_sparse_path(in), AttentionPath::kReference);
  setenv("SIGMA_ATTENTION", "portable", 1);
  EXPECT_EQ(block_sparse_path(in), AttentionPath::kPortable);
  setenv("SIGMA_ATTENTION", "fastest", 1);
  EXPECT_THROW(block_sparse_path(in), Error);
  for (const char* name : {"", "portable", "hopper"}) {
    setenv("SIGMA_ATTENTION", name, 1);
    EXPECT_EQ(block_sparse_path(on_gpu(input_of(kLarge), torch::kFloat)),
              AttentionPath::kReference);
  }
}

}  // namespace
}  // namespace sigma
