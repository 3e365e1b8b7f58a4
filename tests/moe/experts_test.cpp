// The experts' engines against the definition in float64, and the plan they run on.
#include "sigma/moe/experts.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/cuda.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <limits>

#include "sigma/base/error.h"
#include "tests/testing/errors.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

struct Load {
  const char* name;
  int64_t T, C, I, E, K;
  double skew = 0;      // of the experts' popularity
  int64_t dropped = 0;  // every n-th pair
};

const std::vector<Load> kLoads = {{"even", 40, 12, 8, 5, 2},
                                  {"zipf", 333, 33, 17, 16, 3, 2},
                                  {"one token", 1, 8, 4, 4, 2},
                                  {"all on the same", 50, 16, 8, 6, 2, 50},
                                  {"every expert", 20, 8, 8, 4, 4},
                                  {"one expert", 300, 8, 24, 1, 1},
                                  {"dropped pairs", 60, 8, 8, 4, 2, 1, 3},
                                  {"no tokens", 0, 8, 8, 4, 2}};

struct Inputs {
  Tensor x, w_in, w_out, b_in, b_out, weight, grad, pair_expert;
  Plan plan;
  std::string activation;

  Inputs(const Load& l, const std::string& phi, bool bias) : activation(phi) {
    const int64_t F = phi == "swiglu" ? 2 * l.I : l.I;
    x = normal({l.T, l.C}, 1);
    w_in = normal({l.E, F, l.C}, 2) * 0.3;
    w_out = normal({l.E, l.C, l.I}, 3) * 0.3;
    if (bias) {
      b_in = normal({l.E, F}, 4);
      b_out = normal({l.E, l.C}, 5);
    }
    weight = normal({l.T * l.K}, 6).abs();
    grad = normal({l.T, l.C}, 7);
    const Tensor popular = torch::arange(l.E, torch::kDouble).log1p() * -l.skew;
    const Tensor noise = normal({l.T, l.E}, 8) + popular;
    Tensor expert = std::get<1>(noise.sort(true, 1, true)).narrow(1, 0, l.K).flatten();
    if (l.dropped > 0)
      expert = expert.masked_fill(torch::arange(expert.size(0)) % l.dropped == 0, -1);
    pair_expert = expert;
    plan = make_plan(torch::arange(l.T).repeat_interleave(l.K), expert, l.T, l.E);
  }

  // Output and gradients, on the CPU; inputs are rounded to `rounded` first.
  std::vector<Tensor> run(const std::string& engine, torch::ScalarType dtype,
                          torch::ScalarType rounded = torch::kFloat,
                          torch::Device device = torch::kCPU) const {
    const auto leaf = [&](const Tensor& t, torch::ScalarType to) {
      return t.defined() ? t.to(rounded).to(device, to).detach().requires_grad_() : t;
    };
    const auto at_least = dtype == torch::kDouble ? dtype : torch::kFloat;
    const Tensor X = leaf(x, dtype), g = leaf(weight, at_least);
    const Experts e{leaf(w_in, dtype), leaf(w_out, dtype), leaf(b_in, dtype), leaf(b_out, dtype),
                    activation};
    const Plan there{plan.offsets.to(device), plan.row_token.to(device), plan.row_pair.to(device),
                     plan.token_offsets.to(device), plan.token_rows.to(device)};
    const Tensor y = run_experts(engine, X, e, g, there);
    if (y.requires_grad()) y.backward(grad.to(rounded).to(device, dtype));
    std::vector<Tensor> results = {y.detach().cpu()};
    for (const Tensor& t : {X, g, e.w_in, e.w_out, e.b_in, e.b_out})
      if (t.defined())
        results.push_back((t.grad().defined() ? t.grad() : torch::zeros_like(t)).cpu());
    return results;
  }
};

// Of the largest number, in float32: sums of up to T or C or I products, two deep.
double float_error(const Load& load) {
  const auto terms = static_cast<double>(std::max({load.T, load.C, 2 * load.I}));
  return std::numeric_limits<float>::epsilon() * (8 + 2 * std::sqrt(terms));
}

TEST(Experts, TheCpuEngineFollowsTheDefinition) {
  for (const Load& load : kLoads) {
    for (const std::string activation : {"swiglu", "gelu", "gelu_tanh"}) {
      const Inputs in(load, activation, activation != "swiglu");
      const auto expected = in.run("reference", torch::kDouble);
      const auto actual = in.run("cpu", torch::kFloat);
      ASSERT_EQ(expected.size(), actual.size());
      for (size_t i = 0; i < expected.size(); ++i) {
        const double largest =
            expected[i].numel() == 0 ? 0 : expected[i].abs().max().item<double>();
        EXPECT_LE(error(actual[i], expected[i]), float_error(load) * (1e-3 + largest))
            << load.name << " " << activation << " " << i;
      }
    }
  }
}

TEST(Experts, TheGpuEngineFollowsTheDefinition) {
  if (!torch::cuda::is_available()) GTEST_SKIP() << "no NVIDIA GPU";
  for (Load load : kLoads) {
    load.C *= 8;
    load.I *= 8;
    for (const std::string activation : {"swiglu", "gelu", "gelu_tanh"}) {
      const Inputs in(load, activation, activation != "swiglu");
      const auto expected = in.run("reference", torch::kDouble, torch::kBFloat16);
      // What freed memory holds must not matter.
      torch::full({1 << 22}, std::nan(""), torch::kCUDA);
      const auto run = [&] {
        return in.run("grouped_mm", torch::kBFloat16, torch::kBFloat16, torch::kCUDA);
      };
      const auto actual = run(), again = run();
      ASSERT_EQ(expected.size(), actual.size());
      for (size_t i = 0; i < expected.size(); ++i) {
        const double largest =
            expected[i].numel() == 0 ? 0 : expected[i].abs().max().item<double>();
        // Four roundings to 8 bits lie on the way (Z, A, the rows, their sum; back dA, dZ, the
        // rows, their sum), each of at most 2^-8 of what it rounds.
        EXPECT_LE(error(actual[i], expected[i]), 4 * 0x1p-8 * largest)
            << load.name << " " << activation << " " << i;
        EXPECT_TRUE(torch::equal(actual[i], again[i])) << load.name << " " << activation << i;
      }
    }
  }
}

TEST(Experts, GradientsOfTheDefinition) {
  const Inputs in({"", 5, 3, 2, 3, 2}, "swiglu", true);
  const auto y = [&](const Tensor& w_in) {
    return (run_experts("reference", in.x, {w_in, in.w_out, in.b_in, in.b_out}, in.weight,
                        in.plan) *
            in.grad)
        .sum();
  };
  const Tensor w = in.w_in.detach().requires_grad_();
  y(w).backward();
  const Tensor direction = normal(w.sizes(), 30);
  const double h = 1e-6;
  const double slope =
      (y(in.w_in + direction * h) - y(in.w_in - direction * h)).item<double>() / (2 * h);
  EXPECT_NEAR((w.grad() * direction).sum().item<double>(), slope, 1e-7 * std::abs(slope));
}

TEST(Experts, SameBitsOnAnyNumberOfThreads) {
  const Inputs in(kLoads[1], "swiglu", true);
  const int threads = at::get_num_threads();
  const auto two = in.run("cpu", torch::kFloat);
  at::set_num_threads(1);
  const auto one = in.run("cpu", torch::kFloat);
  at::set_num_threads(threads);
  for (size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(torch::equal(one[i], two[i])) << i;
}

TEST(Experts, ExpertsWithoutRowsGetExactlyZero) {
  const Inputs in(kLoads[3], "swiglu", true);  // experts 2 .. 5 have none
  for (const char* engine : {"reference", "cpu"}) {
    const auto results = in.run(engine, torch::kFloat);
    for (size_t i = 3; i < results.size(); ++i) {
      EXPECT_EQ(results[i].slice(0, 2).abs().max().item<double>(), 0) << engine << i;
      EXPECT_GT(results[i].slice(0, 0, 2).abs().max().item<double>(), 0) << engine << i;
    }
  }
}

TEST(Experts, AnEngineRefusesWhatItCannotDo) {
  const Inputs in(kLoads[0], "swiglu", false);
  EXPECT_THROW(in.run("cpu", torch::kDouble), Error);
  EXPECT_THROW(in.run("grouped_mm", torch::kFloat), Error);
}

TEST(Experts, ViewsAreReadAsTheyAreAndShapesThatDoNotFitAreNamed) {
  const Inputs in(kLoads[1], "gelu", true);
  const auto run = [&](const std::string& engine, const Tensor& w_in, const Tensor& b_in,
                       const Tensor& weight) {
    const auto dtype = engine == "cpu" ? torch::kFloat : torch::kDouble;
    return run_experts(
        engine, in.x.to(dtype),
        {w_in.to(dtype), in.w_out.to(dtype), b_in.to(dtype), in.b_out.to(dtype), "gelu"},
        weight.to(dtype), in.plan);
  };
  const Tensor one_bias = in.b_in.to(torch::kFloat).slice(0, 0, 1).expand_as(in.b_in);
  const Tensor turned = in.w_in.to(torch::kFloat).transpose(1, 2).contiguous().transpose(1, 2);
  const Tensor expected = run("reference", turned, one_bias, in.weight);
  EXPECT_LE(error(run("cpu", turned, one_bias, in.weight), expected),
            float_error(kLoads[1]) * expected.abs().max().item<double>());
  const auto names = [&](const char* what, const Tensor& w_in, const Tensor& b_in,
                         const Tensor& weight) {
    testing::expect_contains(
        testing::error_of(ErrorKind::kUsage, [&] { run("cpu", w_in, b_in, weight); }), what);
  };
  names("w_in: expected", in.w_in.slice(2, 1), in.b_in, in.weight);
  names("b_in: expected", in.w_in, in.b_in.slice(1, 1), in.weight);
  names("pair_weight: expected", in.w_in, in.b_in, in.weight.slice(0, 1));
  testing::expect_contains(testing::error_of(ErrorKind::kUsage,
                                             [&] {
                                               make_plan(torch::tensor({0, 3}, torch::kInt64),
                                                         torch::tensor({0, 0}, torch::kInt64), 3,
                                                         1);
                                             }),
                           "tokens in [0, 3), got 3");
}

TEST(Plan, OrdersPairsAndTurnsThemRound) {
  for (const Load& load : kLoads) {
    const Inputs in(load, "swiglu", false);
    const auto offsets = list(in.plan.offsets);
    const auto tokens = list(in.plan.row_token), pairs = list(in.plan.row_pair);
    const auto experts = list(in.pair_expert);
    const auto token_offsets = list(in.plan.token_offsets);
    const auto token_rows = list(in.plan.token_rows);
    ASSERT_EQ(static_cast<int64_t>(offsets.size()), load.E + 1);
    for (size_t e = 0; e + 1 < offsets.size(); ++e) {
      ASSERT_LE(offsets[e], offsets[e + 1]);
      for (int64_t r = offsets[e]; r < offsets[e + 1]; ++r) {
        EXPECT_EQ(experts[pairs[r]], static_cast<int64_t>(e));
        EXPECT_EQ(pairs[r] / load.K, tokens[r]);
        if (r > offsets[e]) EXPECT_LT(pairs[r - 1], pairs[r]);
      }
    }
    for (size_t r = static_cast<size_t>(offsets.back()); r < tokens.size(); ++r) {
      EXPECT_EQ(tokens[r], -1);
      EXPECT_EQ(token_rows[r], -1);
    }
    for (size_t t = 0; t + 1 < token_offsets.size(); ++t) {
      for (int64_t i = token_offsets[t]; i < token_offsets[t + 1]; ++i)
        EXPECT_EQ(tokens[token_rows[i]], static_cast<int64_t>(t));
      for (int64_t i = token_offsets[t] + 1; i < token_offsets[t + 1]; ++i)
        EXPECT_LT(token_rows[i - 1], token_rows[i]);
    }
    EXPECT_EQ(token_offsets.back(), offsets.back());
  }
}

}  // namespace
}  // namespace sigma
