// Packed heads and their gated sum on an NVIDIA GPU against the definitions in float64 on the CPU.
// Every test skips without one.
#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include "sigma/attention/packed_heads.h"
#include "tests/cuda/gpu_test.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

class PackedHeadsCuda : public PoisonedGpuTest {};

const std::vector<torch::ScalarType> kTypes = {torch::kFloat, torch::kHalf, torch::kBFloat16};

// Computed in float32 from a few terms of order 1, rounded once.
bool close(const Tensor& actual, const Tensor& exact) {
  const auto type = actual.scalar_type();
  const double u = type == torch::kHalf ? 0x1p-11 : type == torch::kBFloat16 ? 0x1p-8 : 0x1p-24;
  const Tensor apart = (actual.cpu().to(torch::kDouble) - exact).abs();
  return (apart <= u * exact.abs() + 1e-5).all().item<bool>();
}

Tensor permutation(int64_t N) { return normal({N}, 77).argsort(); }

// What `run` makes of leaves, and the gradients of them for seeded gradients of results; the first
// result's is missing.
template <typename Run>
std::vector<Tensor> with_gradients(const Run& run, const std::vector<Tensor>& leaves) {
  std::vector<Tensor> out = run(leaves), used, grads;
  for (size_t i = out.size() > 1 ? 1 : 0; i < out.size(); ++i) {
    used.push_back(out[i]);
    grads.push_back(normal(out[i].sizes(), 20 + static_cast<uint32_t>(i), torch::kFloat)
                        .to(torch::kBFloat16)
                        .to(out[i].options()));
  }
  for (const Tensor& g : torch::autograd::grad(used, leaves, grads)) out.push_back(g);
  return out;
}

void expect_close(const std::vector<Tensor>& actual, const std::vector<Tensor>& exact) {
  ASSERT_EQ(actual.size(), exact.size());
  for (size_t i = 0; i < exact.size(); ++i) {
    ASSERT_EQ(actual[i].sizes(), exact[i].sizes()) << i;
    EXPECT_TRUE(close(actual[i].detach(), exact[i].detach())) << i;
  }
}

TEST_F(PackedHeadsCuda, Pack) {
  struct Case {
    int64_t B, D;
    Grid grid;
    std::string pairing;  // empty: no rotation
    std::vector<int64_t> axis_dims;
    int64_t rest;
  };
  const std::vector<Case> cases = {{1, 64, {3, 5, 7}, "interleaved", {}, 8},
                                   {2, 64, {1, 9, 13}, "half", {}, 16},
                                   {2, 40, {1, 9, 13}, "half", {6, 8}, 0},
                                   {2, 72, {1, 9, 13}, "interleaved", {6, 12}, 8},
                                   {3, 128, {1, 1, 131}, "", {}, 8},
                                   {1, 8, {1, 1, 1}, "half", {}, 0},
                                   {0, 64, {1, 3, 3}, "", {}, 8}};
  for (const Case& c : cases) {
    for (const auto type : kTypes) {
      SCOPED_TRACE(std::to_string(c.D) + c.pairing + toString(type));
      const int64_t heads = 23;
      const TokenLayout layout{.before = 2, .grid = c.grid, .after = 1};
      const RopeConfig config{.kind = "axial",
                              .pairing = c.pairing.empty() ? "half" : c.pairing,
                              .axis_dims = c.axis_dims};
      // Between other columns: rows are not dense.
      const Tensor wide =
          normal({c.B, layout.tokens(), heads * c.D + c.rest + 16}, 1, torch::kFloat).to(type);
      const auto run = [&](torch::Device device, bool kernels) {
        const auto angles = kernels ? torch::kFloat : torch::kDouble;
        const Rope rope(config, c.D, layout, angles, device);
        PackInput in{.head_dim = c.D};
        in.order = permutation(layout.tokens()).to(device);
        if (!c.pairing.empty()) in.rope = &rope;
        in.parts = {{.heads = 17, .turned = {true, true, true}},
                    {.heads = 2, .turned = {false, true, true}},
                    {.heads = 3, .turned = {false, false}},
                    {.heads = 1, .turned = {}}};  // which nobody reads
        const auto pack = [&](const std::vector<Tensor>& leaves) {
          in.rows = leaves[0].slice(-1, 8, 8 + heads * c.D + c.rest);
          PackedHeads out;
          if (kernels) EXPECT_TRUE(pack_heads_gpu(in, out));
          else out = pack_heads_reference(in);
          out.heads.push_back(out.rest);
          return out.heads;
        };
        const Tensor leaf = kernels ? wide.to(device) : wide.to(torch::kDouble);
        return with_gradients(pack, {leaf.detach().requires_grad_()});
      };
      const std::vector<Tensor> actual = run(torch::kCUDA, true);
      expect_close(actual, run(torch::kCPU, false));
      const std::vector<Tensor> again = run(torch::kCUDA, true);
      for (size_t i = 0; i < actual.size(); ++i)
        EXPECT_TRUE(torch::equal(actual[i], again[i])) << i;
    }
  }
}

TEST_F(PackedHeadsCuda, GatedSum) {
  struct Case {
    int64_t B, H, Ng, beside, D, branches;
  };
  const std::vector<Case> cases = {{1, 16, 130, 0, 64, 2}, {2, 3, 65, 7, 64, 3},
                                   {2, 5, 33, 1, 40, 2},   {1, 20, 3, 0, 128, 1},
                                   {2, 1, 1, 4, 8, 3},     {0, 2, 5, 1, 16, 2}};
  for (const Case& c : cases) {
    for (const auto type : kTypes) {
      SCOPED_TRACE(std::to_string(c.D) + toString(type));
      const int64_t N = c.Ng + c.beside;
      std::vector<Tensor> leaves = {normal({c.B, N, c.H * c.branches + 3}, 1, torch::kFloat)};
      for (int64_t i = 0; i < c.branches; ++i)  // transposed: not contiguous
        leaves.push_back(
            normal({c.B, c.Ng, c.H, c.D}, 2 + static_cast<uint32_t>(i), torch::kFloat));
      if (c.beside > 0) leaves.push_back(normal({c.B, c.H, c.beside, c.D}, 9, torch::kFloat));
      for (Tensor& x : leaves) x = x.to(type);
      const auto run = [&](torch::Device device, bool kernels) {
        GatedSumInput in;
        in.order = permutation(N).to(device);
        in.inverse = in.order.argsort();
        const auto sum = [&](const std::vector<Tensor>& x) {
          in.gates = x[0].slice(-1, 0, c.H * c.branches);
          for (int64_t i = 0; i < c.branches; ++i)
            in.branches.push_back(x[static_cast<size_t>(i) + 1].transpose(1, 2));
          if (c.beside > 0) in.beside = x.back();
          Tensor out;
          if (kernels) EXPECT_TRUE(gated_sum_gpu(in, out));
          else out = gated_sum_reference(in);
          return std::vector<Tensor>{out};
        };
        std::vector<Tensor> own;
        for (const Tensor& x : leaves)
          own.push_back((kernels ? x.to(device) : x.to(torch::kDouble)).detach().requires_grad_());
        return with_gradients(sum, own);
      };
      expect_close(run(torch::kCUDA, true), run(torch::kCPU, false));
    }
  }
}

TEST_F(PackedHeadsCuda, WhatKernelsDoNotTakeIsLeftToTorch) {
  const auto taken = [](int64_t D, torch::ScalarType type, int64_t offset) {
    PackInput in{.head_dim = D,
                 .parts = {{.heads = 2, .turned = {false}}},
                 .order = torch::arange(5, torch::kCUDA)};
    in.rows = torch::zeros({1, 5, 2 * D + 8}, torch::TensorOptions(torch::kCUDA).dtype(type));
    in.rows = in.rows.slice(-1, offset, offset + 2 * D);
    PackedHeads out;
    return pack_heads_gpu(in, out);
  };
  EXPECT_TRUE(taken(8, torch::kHalf, 0));
  EXPECT_FALSE(taken(12, torch::kHalf, 0));
  EXPECT_FALSE(taken(8, torch::kDouble, 0));
  EXPECT_FALSE(taken(8, torch::kHalf, 1));
}

}  // namespace
}  // namespace sigma
