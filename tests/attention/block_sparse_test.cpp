// The block-sparse operator: the CPU kernels against the definition, the definition against dense
// attention, and the edges.
#include "sigma/attention/block_sparse.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <limits>

#include "sigma/attention/block_plan.h"
#include "sigma/attention/dense.h"
#include "sigma/base/error.h"
#include "tests/attention/block_sparse_cases.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

using Case = BlockSparseCase;
using Result = BlockSparseResult;

// attention.md 11 with the largest values: a score is a sum of D products, an output of n weighted
// values.
double bound_of(const BlockSparseInput& in, double largest) {
  const double u = std::numeric_limits<float>::epsilon() / 2;
  const auto D = static_cast<double>(in.q.size(3));
  const auto n = static_cast<double>(in.k.size(2));
  const double score = in.q.numel() == 0 ? 0
                                         : in.q.abs().max().item<double>() *
                                               in.k.abs().max().item<double>() * std::sqrt(D);
  return 4 * u * (1 + D * score + n) * std::max(largest, 1.0);
}

TEST(BlockSparse, KernelsMatchTheDefinition) {
  for (const Case& c : kBlockSparseCases) {
    const BlockSparseInput in = input_of(c);
    const Tensor grad_out = normal({c.B, c.H, c.Nq, c.Dv}, 4);
    BlockSparseInput rounded = in;  // both start from the same float32 numbers
    for (Tensor* x : {&rounded.q, &rounded.k, &rounded.v}) *x = x->to(torch::kFloat);
    const Result expected =
        run(block_sparse_attention_reference, rounded, torch::kDouble, grad_out);
    const Result actual = run(block_sparse_attention, rounded, torch::kFloat, grad_out);
    const auto check = [&](const char* what, const Tensor& a, const Tensor& b) {
      const Tensor finite = b.masked_fill(b.isinf(), 0);
      EXPECT_TRUE(torch::equal(a.isinf(), b.isinf())) << c.name << " " << what;
      const double largest = b.numel() == 0 ? 0 : finite.abs().max().item<double>();
      EXPECT_LE(error(a.masked_fill(b.isinf(), 0), finite), bound_of(in, largest))
          << c.name << " " << what;
    };
    check("out", actual.out, expected.out);
    check("lse", actual.lse, expected.lse);
    check("grad q", actual.grad_q, expected.grad_q);
    check("grad k", actual.grad_k, expected.grad_k);
    check("grad v", actual.grad_v, expected.grad_v);
  }
}

TEST(BlockSparse, DefinitionHasTheGradientOfItsValue) {
  const Case c{.name = "small",
               .B = 1,
               .H = 2,
               .G = 1,
               .Nq = 5,
               .Nk = 5,
               .D = 3,
               .Dv = 2,
               .S = 2,
               .causal = true};
  const BlockSparseInput in = input_of(c);
  const Tensor grad_out = normal({1, 2, 5, 2}, 4);
  const Result result = run(block_sparse_attention_reference, in, torch::kDouble, grad_out);
  const auto value = [&](const BlockSparseInput& at) {
    return (block_sparse_attention_reference(at).out * grad_out).sum().item<double>();
  };
  const double h = 1e-6;
  for (const int which : {0, 1, 2}) {
    const Tensor& x = which == 0 ? in.q : which == 1 ? in.k : in.v;
    const Tensor grad = which == 0 ? result.grad_q : which == 1 ? result.grad_k : result.grad_v;
    for (int64_t i = 0; i < x.numel(); ++i) {
      const auto moved = [&](double step) {
        BlockSparseInput at = in;
        Tensor& y = which == 0 ? at.q : which == 1 ? at.k : at.v;
        y = y.clone();
        y.view({-1})[i] += step;
        return value(at);
      };
      EXPECT_NEAR((moved(h) - moved(-h)) / (2 * h), grad.flatten()[i].item<double>(), 1e-8);
    }
  }
}

TEST(BlockSparse, AllBlocksAreDenseAttention) {
  for (const bool causal : {false, true}) {
    const BlockGeometry geometry = block_geometry({.grid = {1, 1, 75}}, {1, 1, 16});
    BlockSparseInput in{.q = normal({2, 4, 75, 8}, 1),
                        .k = normal({2, 4, 75, 8}, 2),
                        .v = normal({2, 4, 75, 8}, 3),
                        .index = torch::arange(geometry.blocks, torch::kInt).expand({2, 4, 75, 5}),
                        .kv_start = geometry.start};
    if (causal) in.rank_q = in.rank_k = geometry.rank();
    const Tensor expected = attention_reference(in.q, in.k, in.v, causal);
    EXPECT_LE(error(block_sparse_attention(in).out, expected), 1e-14);
    for (Tensor* x : {&in.q, &in.k, &in.v}) *x = x->to(torch::kFloat);
    EXPECT_LE(error(block_sparse_attention(in).out, expected), bound_of(in, 1));
  }
}

TEST(BlockSparse, WindowListsAreAWindow) {
  const int64_t N = 90, w = 21;
  const BlockGeometry geometry = block_geometry({.grid = {1, 1, N}}, {1, 1, 8});
  BlockSparseInput in{.q = normal({1, 2, N, 8}, 1),
                      .k = normal({1, 1, N, 8}, 2),
                      .v = normal({1, 1, N, 8}, 3),
                      .index = window_lists(geometry, w).expand({1, 1, geometry.blocks, -1}),
                      .kv_start = geometry.start,
                      .q_start = geometry.start,
                      .rank_q = geometry.rank(),
                      .rank_k = geometry.rank(),
                      .window = w};
  const Tensor gap = torch::arange(N).unsqueeze(1) - torch::arange(N).unsqueeze(0);
  const Tensor hidden = (gap < 0) | (gap >= w);
  const Tensor scores = (torch::matmul(in.q, in.k.transpose(-1, -2)) / std::sqrt(8.0))
                            .masked_fill(hidden, -std::numeric_limits<double>::infinity());
  EXPECT_LE(error(block_sparse_attention(in).out, torch::matmul(torch::softmax(scores, -1), in.v)),
            1e-14);
}

TEST(BlockSparse, InvalidKeysMayHoldNan) {
  for (const auto dtype : {torch::kFloat, torch::kDouble}) {
    Case c{.name = "invalid", .B = 2, .H = 2, .G = 1, .invalid_keys = true};
    BlockSparseInput in = input_of(c);
    const Tensor grad_out = normal({c.B, c.H, c.Nq, c.Dv}, 4);
    const Result expected = run(block_sparse_attention, in, dtype, grad_out);
    const Tensor gone = in.key_valid.logical_not().unsqueeze(1).unsqueeze(-1);
    in.k = in.k.masked_fill(gone, std::nan(""));
    in.v = in.v.masked_fill(gone, std::nan(""));
    const Result actual = run(block_sparse_attention, in, dtype, grad_out);
    EXPECT_TRUE(torch::equal(actual.out, expected.out));
    EXPECT_TRUE(torch::equal(actual.grad_q, expected.grad_q));
    EXPECT_EQ(error(actual.grad_k.masked_fill(gone, 0), expected.grad_k.masked_fill(gone, 0)), 0);
    in.key_valid = torch::zeros_like(in.key_valid);
    const AttentionOutput nothing = block_sparse_attention(in);
    EXPECT_EQ(nothing.out.abs().max().item<double>(), 0);
    EXPECT_TRUE((nothing.lse == -std::numeric_limits<double>::infinity()).all().item<bool>());
  }
}

TEST(BlockSparse, ViewsGiveTheBitsOfTheirCopies) {
  const Case c{.name = "views", .B = 2, .H = 4, .G = 2, .n = 4, .causal = true};
  BlockSparseInput in = input_of(c);
  for (Tensor* x : {&in.q, &in.k, &in.v}) *x = x->to(torch::kFloat);
  const Tensor expected = block_sparse_attention(in).out;
  for (Tensor* x : {&in.q, &in.k, &in.v}) *x = x->transpose(1, 2).contiguous().transpose(1, 2);
  in.index = in.index.transpose(2, 3).contiguous().transpose(2, 3);
  EXPECT_TRUE(torch::equal(block_sparse_attention(in).out, expected));
}

TEST(BlockSparse, TheSameBitsOnAnyNumberOfThreads) {
  const Case c{
      .name = "threads", .B = 2, .H = 4, .G = 2, .Nq = 300, .Nk = 300, .n = 6, .causal = true};
  const BlockSparseInput in = input_of(c);
  const Tensor grad_out = normal({c.B, c.H, c.Nq, c.Dv}, 4);
  const int threads = at::get_num_threads();
  const Result first = run(block_sparse_attention, in, torch::kFloat, grad_out);
  for (int i = 0; i < 20; ++i) {
    at::set_num_threads(1 + i % 2);
    const Result again = run(block_sparse_attention, in, torch::kFloat, grad_out);
    EXPECT_TRUE(torch::equal(first.out, again.out));
    EXPECT_TRUE(torch::equal(first.grad_q, again.grad_q));
    EXPECT_TRUE(torch::equal(first.grad_k, again.grad_k));
    EXPECT_TRUE(torch::equal(first.grad_v, again.grad_v));
  }
  at::set_num_threads(threads);
}

TEST(BlockSparse, LaterKeysChangeNoEarlierBit) {
  const Case c{.name = "causal", .H = 2, .n = 5, .causal = true};
  BlockSparseInput in = input_of(c);
  for (Tensor* x : {&in.q, &in.k, &in.v}) *x = x->to(torch::kFloat);
  const Tensor before = block_sparse_attention(in).out;
  in.k = in.k.clone();
  in.v = in.v.clone();
  in.k.narrow(2, 40, 30).mul_(-3);
  in.v.narrow(2, 40, 30).add_(1);
  const Tensor after = block_sparse_attention(in).out;
  EXPECT_TRUE(torch::equal(after.narrow(2, 0, 40), before.narrow(2, 0, 40)));
  EXPECT_FALSE(torch::equal(after.narrow(2, 40, 30), before.narrow(2, 40, 30)));
}

TEST(BlockSparse, ErrorsPrintBothNumbers) {
  const BlockSparseInput good = input_of(kBlockSparseCases[0]);
  const auto refused = [&](auto change, const std::string& part) {
    BlockSparseInput in = good;
    change(in);
    try {
      block_sparse_attention(in);
      ADD_FAILURE() << "no error for " << part;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  };
  refused(
      [](auto& in) {
        in.q = torch::zeros({1, 3, 70, 16});
        in.k = in.v = torch::zeros({1, 2, 70, 16});
      },
      "3 and 2");
  refused([](auto& in) { in.index = in.index.slice(2, 0, 60); }, "[1,1,60,3]");
  refused([](auto& in) { in.kv_start = block_starts(64, 16); }, "64 keys, got 70");
  refused([](auto& in) { in.rank_q = torch::arange(70); }, "ranks");
  refused([](auto& in) { in.key_valid = torch::ones({1, 3}, torch::kBool); }, "[1,3]");
}

}  // namespace
}  // namespace sigma
