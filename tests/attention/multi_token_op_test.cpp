// Multi-token attention: the CPU kernels against the definition, the definition against numbers
// worked out by hand and against dense attention, and the edges.
#include "sigma/attention/multi_token_op.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <limits>

#include "sigma/attention/dense.h"
#include "sigma/attention/multi_token_strips.h"
#include "sigma/attention/multi_token_wide.h"
#include "sigma/base/error.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

struct Case {
  const char* name;
  int64_t B = 1, H = 2, D = 16, Dv = 16;
  TokenLayout layout = {.grid = {1, 1, 40}};
  Grid before_q = {1, 1, 3}, before_k = {1, 1, 5}, after_q = {1, 1, 3}, after_k = {1, 1, 5};
  bool past = false;
  bool conv_before = true, conv_after = true;
  int64_t mix_before = 0, mix_after = 0;  // heads of a group; 0: none
  bool invalid_keys = false;
  double size = 1;
};

constexpr Grid kBox2 = {1, 3, 3};
constexpr Grid kBox3 = {3, 3, 3};

const std::vector<Case> kCases = {
    {.name = "sequence"},
    {.name = "causal",
     .layout = {.grid = {1, 1, 70}, .pattern = Pattern::kCausal},
     .before_q = {1, 1, 6},
     .before_k = {1, 1, 11},
     .past = true},
    {.name = "causal, several strips and parts, all heads mix",
     .H = 4,
     .layout = {.grid = {1, 1, 333}, .pattern = Pattern::kCausal},
     .before_q = {1, 1, 6},
     .before_k = {1, 1, 11},
     .after_q = {1, 1, 2},
     .past = true,
     .mix_before = 4,
     .mix_after = 2},
    {.name = "causal, centred",
     .layout = {.grid = {1, 1, 150}, .pattern = Pattern::kCausal},
     .mix_after = 2},
    {.name = "several strips, centred", .layout = {.grid = {1, 1, 300}}, .mix_after = 2},
    {.name = "groups of 2 and 3", .H = 6, .mix_before = 3, .mix_after = 2},
    {.name = "plane",
     .B = 2,
     .layout = {.grid = {1, 7, 9}},
     .before_q = kBox2,
     .before_k = {1, 5, 3},
     .after_q = {1, 1, 3},
     .after_k = kBox2,
     .mix_before = 2},
    {.name = "volume",
     .layout = {.grid = {3, 4, 5}},
     .before_q = kBox3,
     .before_k = kBox3,
     .after_q = {1, 3, 3},
     .after_k = {3, 1, 1}},
    {.name = "tokens beside a plane, a causal tail",
     .layout = {.before = 2, .grid = {1, 4, 5}, .after = 3, .pattern = Pattern::kCausalAfter},
     .before_q = kBox2,
     .before_k = kBox2,
     .after_q = kBox2,
     .after_k = kBox2,
     .mix_after = 2},
    {.name = "tokens beside a plane",
     .layout = {.before = 1, .grid = {1, 5, 4}, .after = 40},
     .before_q = kBox2,
     .before_k = kBox2,
     .after_q = kBox2,
     .after_k = kBox2},
    {.name = "tokens before a causal sequence",
     .layout = {.before = 3, .grid = {1, 1, 20}, .pattern = Pattern::kCausal},
     .past = true},
    {.name = "before the softmax only", .conv_after = false},
    {.name = "after the softmax only", .conv_before = false},
    {.name = "mixes only",
     .conv_before = false,
     .conv_after = false,
     .mix_before = 2,
     .mix_after = 2},
    {.name = "other widths", .D = 12, .Dv = 24},
    {.name = "invalid keys", .B = 2, .mix_before = 2, .invalid_keys = true},
    {.name = "large scores", .size = 6},
    {.name = "one token", .layout = {.grid = {1, 1, 1}}},
    {.name = "kernel wider than the grid",
     .layout = {.grid = {1, 2, 2}},
     .before_q = kBox2,
     .before_k = {1, 7, 7},
     .after_q = kBox2,
     .after_k = kBox2},
    {.name = "no images", .B = 0},
};

ScoreMixing mixing(const Case& c, bool conv, const Grid& q, const Grid& k, int64_t group,
                   uint32_t site) {
  ScoreMixing m;
  if (conv) {
    m.queries = c.past ? past_steps(q) : centred_steps(q);
    m.keys = centred_steps(k);
    m.kernel = normal({c.H, q.size(), k.size()}, site) * 0.5;
  }
  if (group > 0) m.mix = normal({c.H / group, group, group}, site + 1);
  return m;
}

MultiTokenInput input_of(const Case& c) {
  const int64_t N = c.layout.tokens();
  MultiTokenInput in;
  in.q = normal({c.B, c.H, N, c.D}, 1) * c.size;
  in.k = normal({c.B, c.H, N, c.D}, 2) * c.size;
  in.v = normal({c.B, c.H, N, c.Dv}, 3);
  in.layout = c.layout;
  in.before = mixing(c, c.conv_before, c.before_q, c.before_k, c.mix_before, 5);
  in.after = mixing(c, c.conv_after, c.after_q, c.after_k, c.mix_after, 7);
  if (c.invalid_keys) in.key_valid = normal({c.B, N}, 24) > -0.3;
  return in;
}

std::vector<Tensor*> leaves(MultiTokenInput& in) {
  std::vector<Tensor*> all = {&in.q, &in.k, &in.v};
  for (Tensor* x : {&in.before.kernel, &in.before.mix, &in.after.kernel, &in.after.mix})
    if (x->defined()) all.push_back(x);
  return all;
}

// Output, lse and the gradients of all leaves.
template <typename F>
std::vector<Tensor> run(F op, MultiTokenInput in, torch::ScalarType dtype, const Tensor& grad_out) {
  for (Tensor* x : leaves(in)) *x = x->to(torch::kFloat).to(dtype).detach().requires_grad_();
  const AttentionOutput out = op(in);
  (out.out * grad_out.to(dtype)).sum().backward();
  std::vector<Tensor> results = {out.out.detach(), out.lse};
  for (Tensor* x : leaves(in)) results.push_back(x->grad());
  return results;
}

TEST(MultiTokenOp, KernelsMatchTheDefinition) {
  for (const Case& c : kCases) {
    const MultiTokenInput in = input_of(c);
    const Tensor grad_out = normal({c.B, c.H, c.layout.tokens(), c.Dv}, 4);
    const auto expected = run(multi_token_attention_reference, in, torch::kDouble, grad_out);
    const auto actual = run(multi_token_attention, in, torch::kFloat, grad_out);
    ASSERT_EQ(expected.size(), actual.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      const Tensor finite = expected[i].masked_fill(expected[i].isinf(), 0);
      EXPECT_TRUE(torch::equal(actual[i].isinf(), expected[i].isinf())) << c.name << " " << i;
      const double largest = finite.numel() == 0 ? 0 : finite.abs().max().item<double>();
      // Roundings of sums of D products, of the taps and of the tokens add up like their square
      // roots; an exponential multiplies them by the size of the scores.
      const int64_t terms = c.D + c.before_q.size() * c.before_k.size() + c.layout.tokens();
      const double bound = 4 * std::numeric_limits<float>::epsilon() *
                           std::sqrt(static_cast<double>(terms)) * c.size * c.size *
                           std::max(largest, 1.0);
      EXPECT_LE(error(actual[i].masked_fill(actual[i].isinf(), 0), finite), bound)
          << c.name << " " << i;
    }
  }
}

TEST(MultiTokenOp, WideHeadsAreTheDefinition) {
  int compared = 0;
  for (const Case& c : kCases) {
    const MultiTokenInput in = input_of(c);
    if (!takes_multi_token_wide(in)) continue;
    ++compared;
    const Tensor grad_out = normal({c.B, c.H, c.layout.tokens(), c.Dv}, 4);
    const auto expected = run(multi_token_attention_reference, in, torch::kDouble, grad_out);
    const auto actual = run(
        [](const MultiTokenInput& x) {
          return AttentionOutput{.out = multi_token_wide(x), .lse = torch::zeros({0})};
        },
        in, torch::kDouble, grad_out);
    for (size_t i = 0; i < expected.size(); ++i) {
      if (i == 1) continue;  // lse
      EXPECT_LE(error(actual[i], expected[i]), 1e-12 * (1 + expected[i].abs().max().item<double>()))
          << c.name << " " << i;
    }
  }
  EXPECT_GE(compared, 10);
}

// Strips that end within the reach of a kernel, and one that holds all.
TEST(MultiTokenOp, StripsAreTheDefinition) {
  for (const Case& c : kCases) {
    const MultiTokenInput in = input_of(c);
    const Tensor grad_out = normal({c.B, c.H, c.layout.tokens(), c.Dv}, 4);
    const auto expected = run(multi_token_attention_reference, in, torch::kDouble, grad_out);
    for (const int64_t rows : {7, 0}) {
      const auto strips = [&](const MultiTokenInput& x) { return multi_token_strips(x, rows); };
      const auto actual = run(strips, in, torch::kDouble, grad_out);
      for (size_t i = 0; i < expected.size(); ++i) {
        const Tensor finite = expected[i].masked_fill(expected[i].isinf(), 0);
        EXPECT_TRUE(torch::equal(actual[i].isinf(), expected[i].isinf())) << c.name << " " << i;
        const double largest = finite.numel() == 0 ? 0 : finite.abs().max().item<double>();
        EXPECT_LE(error(actual[i].masked_fill(actual[i].isinf(), 0), finite), 1e-12 * (1 + largest))
            << c.name << " " << rows << " " << i;
      }
    }
  }
}

// attention.md 8, worked out by hand.
TEST(MultiTokenOp, NumbersByHand) {
  MultiTokenInput in;
  in.q = torch::tensor({1.0, 2.0, 3.0}, torch::kDouble).view({1, 1, 3, 1});
  in.k = torch::tensor({1.0, 1.0, 2.0}, torch::kDouble).view({1, 1, 3, 1});
  in.v = torch::tensor({1.0, 10.0, 100.0}, torch::kDouble).view({1, 1, 3, 1});
  in.layout.grid = {1, 1, 3};
  in.before.queries = in.after.queries = past_steps({1, 1, 2});
  in.before.keys = in.after.keys = centred_steps({1, 1, 3});
  in.before.kernel = torch::tensor({.5, 1., .25, 0., .5, 0.}, torch::kDouble).view({1, 2, 3});
  in.after.kernel = torch::tensor({0., 1., .5, .25, 0., 0.}, torch::kDouble).view({1, 2, 3});
  in.scale = 1;
  const auto expect = [&](double a, double b, double c) {
    const Tensor expected = torch::tensor({a, b, c}, torch::kDouble).view({1, 1, 3, 1});
    EXPECT_LE(error(multi_token_attention_reference(in).out, expected), 5e-5);
    MultiTokenInput rounded = in;
    for (Tensor* x : leaves(rounded)) *x = x->to(torch::kFloat);
    EXPECT_LE(error(multi_token_attention(rounded).out, expected), 5e-5);
  };
  expect(65.8617, 79.8806, 88.4701);
  in.layout.pattern = Pattern::kCausal;
  expect(1, 7.0758, 66.1921);
}

TEST(MultiTokenOp, IdentityIsDenseAttention) {
  for (const bool causal : {false, true}) {
    MultiTokenInput in = input_of({.name = "", .H = 4, .past = causal, .mix_before = 4});
    in.layout.pattern = causal ? Pattern::kCausal : Pattern::kFull;
    for (ScoreMixing* m : {&in.before, &in.after}) {
      m->kernel = torch::zeros_like(m->kernel);
      for (size_t a = 0; a < m->queries.size(); ++a)
        for (size_t b = 0; b < m->keys.size(); ++b)
          if (m->queries[a] == GridStep{} && m->keys[b] == GridStep{})
            m->kernel.select(1, static_cast<int64_t>(a))
                .select(1, static_cast<int64_t>(b))
                .fill_(1);
    }
    in.before.mix = torch::eye(4, torch::kDouble).unsqueeze(0);
    const Tensor dense = attention_reference(in.q, in.k, in.v, causal);
    EXPECT_LE(error(multi_token_attention_reference(in).out, dense), 1e-14);
    for (Tensor* x : leaves(in)) *x = x->to(torch::kFloat);
    EXPECT_LE(error(multi_token_attention(in).out, dense), 3e-6);
  }
}

TEST(MultiTokenOp, LaterTokensChangeNothingBefore) {
  MultiTokenInput in = input_of(kCases[2]);
  for (Tensor* x : leaves(in)) *x = x->to(torch::kFloat);
  const Tensor before = multi_token_attention(in).out;
  for (Tensor* x : {&in.q, &in.k, &in.v}) {
    *x = x->clone();
    x->slice(2, 200).fill_(3);
  }
  const Tensor after = multi_token_attention(in).out;
  EXPECT_TRUE(torch::equal(before.slice(2, 0, 200), after.slice(2, 0, 200)));
  EXPECT_FALSE(torch::equal(before.slice(2, 200), after.slice(2, 200)));
}

TEST(MultiTokenOp, TheEndOfARowDoesNotSeeTheNextRow) {
  MultiTokenInput in = input_of({.name = "",
                                 .layout = {.grid = {1, 4, 5}},
                                 .before_q = kBox2,
                                 .before_k = kBox2,
                                 .after_q = kBox2,
                                 .after_k = kBox2});
  // Token 4 ends row 0, token 5 begins row 1: not neighbours, so that it has no share in the score.
  const Tensor back = stepped_back(in.layout, {0, 0, -1});
  EXPECT_EQ(back[4].item<int64_t>(), 20);
  EXPECT_EQ(back[3].item<int64_t>(), 4);
  EXPECT_EQ(stepped_back(in.layout, {0, 1, 1})[5].item<int64_t>(), 20);
  EXPECT_EQ(stepped_back(in.layout, {0, 1, 1})[6].item<int64_t>(), 0);
}

TEST(MultiTokenOp, SameBitsOnAnyNumberOfThreadsAndViews) {
  MultiTokenInput in = input_of(kCases[2]);
  for (Tensor* x : leaves(in)) *x = x->to(torch::kFloat);
  const Tensor grad_out = normal({1, 4, 333, 16}, 4);
  const int threads = at::get_num_threads();
  const auto two = run(multi_token_attention, in, torch::kFloat, grad_out);
  at::set_num_threads(1);
  for (Tensor* x : {&in.q, &in.k, &in.v}) *x = x->transpose(1, 2).contiguous().transpose(1, 2);
  const auto one = run(multi_token_attention, in, torch::kFloat, grad_out);
  at::set_num_threads(threads);
  for (size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(torch::equal(one[i], two[i])) << i;
}

TEST(MultiTokenOp, InvalidKeysMayHoldAnything) {
  MultiTokenInput in = input_of({.name = "", .B = 2, .invalid_keys = true});
  for (Tensor* x : leaves(in)) *x = x->to(torch::kFloat);
  const Tensor before = multi_token_attention(in).out;
  const Tensor invalid = in.key_valid.logical_not().unsqueeze(1).unsqueeze(-1);
  in.k = in.k.masked_fill(invalid, std::numeric_limits<float>::quiet_NaN());
  in.v = in.v.masked_fill(invalid, std::numeric_limits<float>::quiet_NaN());
  EXPECT_TRUE(torch::equal(before, multi_token_attention(in).out));
  in.key_valid = torch::zeros_like(in.key_valid);
  const AttentionOutput nothing = multi_token_attention(in);
  EXPECT_EQ(nothing.out.abs().max().item<double>(), 0);
  EXPECT_TRUE(nothing.lse.isinf().all().item<bool>());
}

TEST(MultiTokenOp, RefusesWhatDoesNotFit) {
  MultiTokenInput in = input_of({.name = ""});
  const auto refuses = [](const MultiTokenInput& bad) {
    EXPECT_THROW(multi_token_attention(bad), Error);
    EXPECT_THROW(multi_token_attention_reference(bad), Error);
  };
  MultiTokenInput bad = in;
  bad.layout.grid = {1, 5, 9};
  refuses(bad);
  bad = in;
  bad.before.kernel = in.before.kernel.slice(0, 0, 1);
  refuses(bad);
  bad = in;
  bad.after.mix = torch::zeros({1, 3, 3});
  refuses(bad);
  bad = in;
  bad.layout.visible = torch::zeros({1, 40}, torch::kInt64);
  refuses(bad);
  EXPECT_THROW(centred_steps({1, 1, 4}), Error);
}

}  // namespace
}  // namespace sigma
