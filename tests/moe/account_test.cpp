// The account against published numbers, the layer's own parameters, and what the allocator saw.
#include "sigma/moe/account.h"

#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <algorithm>
#include <atomic>
#include <cmath>

#include "tests/testing/errors.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

// Counts the bytes of tensors on the CPU while it lives; a header before the data has their number.
class CountingAllocator : public c10::Allocator {
 public:
  CountingAllocator() : base_(c10::GetCPUAllocator()) {
    now_ = most_ = 0;
    c10::SetAllocator(torch::kCPU, this);
  }
  ~CountingAllocator() override { c10::SetAllocator(torch::kCPU, base_); }
  c10::DataPtr allocate(size_t n) override {
    char* data = static_cast<char*>(c10::alloc_cpu(n + kHeader)) + kHeader;
    *reinterpret_cast<size_t*>(data - kHeader) = n;
    now_ += static_cast<int64_t>(n);
    most_ = std::max<int64_t>(most_, now_);
    return {data, data, &release, torch::kCPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t n) const override {
    default_copy_data(to, from, n);
  }
  static int64_t now() { return now_; }
  /// The highest since the last call.
  static int64_t most() { return most_.exchange(now_); }

 private:
  static constexpr size_t kHeader = 64;  // keeps the alignment
  static void release(void* data) {
    char* all = static_cast<char*>(data) - kHeader;
    now_ -= static_cast<int64_t>(*reinterpret_cast<size_t*>(all));
    c10::free_cpu(all);
  }
  c10::Allocator* base_;
  static inline std::atomic<int64_t> now_{0}, most_{0};
};

struct Case {
  MoeConfig config;
  int64_t C, images, N;
};

std::vector<Case> cases() {
  MoeConfig plain{.num_experts = 8, .num_chosen = 2, .num_shared = 0, .expert_ratio = 0.5};
  MoeConfig shared = plain;
  shared.num_shared = 2;
  shared.router.score = "sigmoid";
  shared.router.normalize = true;
  MoeConfig biased = plain;
  biased.expert_activation = "gelu_tanh";
  biased.expert_bias = true;
  biased.shared_ratio = 3;
  MoeConfig experts_choose = plain;
  experts_choose.router.kind = "expert_choice";
  return {{plain, 32, 4, 2000},
          {shared, 48, 1, 300},
          {biased, 32, 2, 200},
          {experts_choose, 32, 1, 300}};
}

TEST(Account, ExpertsTouchedUnderUniformRouting) {
  for (const auto& [tokens, expected] :
       {std::pair{1, 6.0}, std::pair{4, 20.8}, std::pair{16, 50.8}, std::pair{64, 63.9}})
    EXPECT_NEAR(expected_experts_touched(64, 6, tokens), expected, 0.05) << tokens;
  const auto nearly_all = [](int64_t E, int64_t K) {
    const auto share = [&](int64_t T) {
      return expected_experts_touched(E, K, T) / static_cast<double>(E);
    };
    int64_t T = 1;
    while (share(T) < 0.99) ++T;
    return T;
  };
  EXPECT_EQ(nearly_all(16, 2), 35);
  EXPECT_EQ(nearly_all(64, 6), 47);
  EXPECT_EQ(nearly_all(128, 8), 72);
  EXPECT_EQ(nearly_all(256, 8), 146);
  EXPECT_EQ(expected_experts_touched(4, 4, 1), 4);
  EXPECT_EQ(expected_experts_touched(4, 2, 0), 0);
}

TEST(Account, OneImageIsBoundByWeights) {
  constexpr double kBandwidth = 3.02e12, kRate = 400e12;
  const MoeConfig config{
      .num_experts = 128, .num_chosen = 8, .num_shared = 0, .expert_ratio = 768.0 / 2048};
  const MoeAccount a = account(config, 2048, 256, torch::kBFloat16);
  EXPECT_NEAR(a.touched_weight_bytes, 1.21e9, 0.005e9);
  EXPECT_NEAR(a.weights_seconds(kBandwidth), 0.40e-3, 0.005e-3);
  EXPECT_NEAR(a.math_seconds(kRate), 0.05e-3, 0.005e-3);
  const double rows = balanced_rows(torch::kBFloat16, kBandwidth, kRate);
  EXPECT_NEAR(rows, 132, 0.5);
  EXPECT_NEAR(rows * 128 / 8, 2119, 0.5);
  // The layer meets there but for the router: its weights are float32.
  const MoeAccount balanced = account(config, 2048, 2119, torch::kBFloat16);
  EXPECT_NEAR(balanced.mean_rows, rows, 0.1);
  EXPECT_NEAR(balanced.math_seconds(kRate) / balanced.weights_seconds(kBandwidth), 1, 0.01);
}

TEST(Account, ParametersAndOperationsAreTheLayers) {
  for (const Case& c : cases()) {
    const MixtureOfExperts moe(c.C, c.config);
    double parameters = 0;
    for (const Tensor& p : moe.parameters()) parameters += static_cast<double>(p.numel());
    const MoeAccount a = account(c.config, c.C, c.N, torch::kFloat);
    EXPECT_EQ(a.parameters, parameters);
    EXPECT_EQ(a.weight_bytes, 4 * parameters);
    EXPECT_EQ(a.forward_flops, moe.flops(c.N));
    EXPECT_EQ(a.backward_flops, 2 * a.forward_flops);
  }
}

TEST(Account, BytesAreTheAllocators) {
  const int threads = at::get_num_threads();
  at::set_num_threads(1);  // panels of several threads need not be at their highest together
  for (const Case& c : cases()) {
    MixtureOfExperts moe(c.C, c.config);
    initialize(moe, 1);
    const Tensor x = normal({c.images, c.N, c.C}, 2, torch::kFloat).requires_grad_();
    const Tensor dy = normal({c.images, c.N, c.C}, 3, torch::kFloat);
    const auto whole = static_cast<double>(x.nbytes());

    const CountingAllocator allocator;
    Tensor y = moe.forward(x, {.training = true}).value;
    const auto kept = static_cast<double>(CountingAllocator::now());
    const auto forward_peak = static_cast<double>(CountingAllocator::most());
    y.backward(dy);
    const auto backward_peak = static_cast<double>(CountingAllocator::most());
    const auto pairs = moe.last_routing();
    const Plan plan =
        make_plan(pairs.pair_token, pairs.pair_expert, c.images * c.N, c.config.num_experts);
    const MoeAccount a = account(c.config, c.C, plan, torch::kFloat);
    const std::string name = fmt::format("C {} N {}", c.C, c.N);

    const double saved = a.saved.total() - a.saved.x;
    EXPECT_EQ(kept - whole, saved) << name;
    EXPECT_NEAR(forward_peak, saved + a.forward_workspace, 0.01 * forward_peak) << name;
    // Ours counts the incoming dy, which lay outside; the y it stands for was still alive.
    EXPECT_NEAR(backward_peak, saved + a.gradient_bytes + a.backward_workspace,
                0.01 * backward_peak)
        << name;
  }
  at::set_num_threads(threads);
}

TEST(Account, RowsOfAPlan) {
  const MoeConfig config{.num_experts = 4, .num_chosen = 2, .num_shared = 0};
  const Tensor token = torch::tensor({0, 0, 1, 1, 2, 2}, torch::kInt64);
  const Tensor expert = torch::tensor({0, 1, 0, 2, 0, -1}, torch::kInt64);
  const Plan plan = make_plan(token, expert, 3, 4);
  const MoeAccount a = account(config, 8, plan, torch::kFloat);
  EXPECT_EQ(a.tokens, 3);
  EXPECT_EQ(a.pairs, 6);
  EXPECT_EQ(a.experts_touched, 3);
  EXPECT_EQ(a.min_rows, 0);
  EXPECT_EQ(a.max_rows, 3);
  EXPECT_EQ(a.mean_rows, 1.25);
  EXPECT_DOUBLE_EQ(a.max_violation, 3 / 1.25 - 1);
  // A dropped pair has room and no work; an expert without rows is not read; others' last panels have
  // 16 columns.
  EXPECT_EQ(a.saved.z, 3 * 16 * 16 * 4);
  EXPECT_EQ(a.forward_flops, 6 * 5 * 8 * 8 + 2 * 3 * 8 * 4);
  EXPECT_EQ(a.weight_bytes - a.touched_weight_bytes, 3 * 8 * 8 * 4);
  double bytes = 0;
  for (const Tensor& t : {plan.offsets, plan.row_token, plan.row_pair})
    bytes += static_cast<double>(t.nbytes());
  EXPECT_EQ(a.saved.plan, bytes);

  using testing::error_of;
  testing::expect_contains(
      error_of(ErrorKind::kUsage, [&] { account({}, 8, plan, torch::kFloat); }), "8 experts");
  testing::expect_contains(
      error_of(ErrorKind::kUsage, [&] { account(config, 8, plan, torch::kDouble); }), "float32");
}

TEST(Account, NoTokens) {
  const MoeAccount a = account({}, 8, 0, torch::kFloat);
  EXPECT_EQ(a.forward_flops, 0);
  EXPECT_EQ(a.saved.z, 0);
  EXPECT_EQ(a.max_violation, 0);
  EXPECT_EQ(a.experts_touched, 0);
}

}  // namespace
}  // namespace sigma
