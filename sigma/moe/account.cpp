#include "sigma/moe/account.h"

#include <ATen/Parallel.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>

#include "sigma/base/error.h"
#include "sigma/base/lanes.h"
#include "sigma/moe/kernels/panels.h"

namespace sigma {
namespace {

constexpr double kFloatBytes = 4;  // router, weights of pairs, parameters
constexpr double kIntBytes = 4;    // plan
constexpr double kIndexBytes = 8;  // pairs

// Rows of experts: how many there is room for, how many are used, and by whom.
struct Rows {
  int64_t tokens = 0, room = 0;
  double used = 0, touched = 0, min = 0, max = 0;
  double columns = 0;  // of Z: the cpu engine's panels end at a whole vector
};

Rows uniform_rows(const MoeConfig& config, int64_t T) {
  const int64_t E = config.num_experts;
  Rows rows{.tokens = T};
  if (config.router.kind == "expert_choice") {
    rows.room = E * tokens_of_an_expert(T, config.router.capacity, E);
    rows.touched = T > 0 ? static_cast<double>(E) : 0;
  } else {
    rows.room = T * config.num_chosen;
    rows.touched = expected_experts_touched(E, config.num_chosen, T);
  }
  rows.used = static_cast<double>(rows.room);
  rows.min = rows.max = rows.used / static_cast<double>(E);
  rows.columns = rows.used;
  return rows;
}

Rows rows_of(const MoeConfig& config, const Plan& plan) {
  const int64_t E = plan.offsets.size(0) - 1;
  SIGMA_CHECK(kUsage, E == config.num_experts, "account: expected a plan of {} experts, got {}",
              config.num_experts, E);
  const torch::Tensor counts = plan.offsets.diff();
  return {
      .tokens = plan.token_offsets.size(0) - 1,
      .room = plan.row_token.size(0),
      .used = plan.offsets[E].item<double>(),
      .touched = (counts > 0).sum().item<double>(),
      .min = counts.min().item<double>(),
      .max = counts.max().item<double>(),
      .columns = static_cast<double>(kernels::kLanes) *
                 ((counts + (kernels::kLanes - 1)) / kernels::kLanes).floor().sum().item<double>()};
}

// Numbers of one panel a thread (backward: of an expert's), with the temporaries of experts_cpu.cpp.
double panel_numbers(int64_t C, int64_t I, int64_t E, double max_rows, bool backward) {
  const int64_t lanes =
      std::min(kernels::kPanelRows, kernels::padded(static_cast<int64_t>(std::ceil(max_rows))));
  // x or y, and A; Z is among what is saved.
  const int64_t forward = lanes * (C + I);
  // dA, dZ, g A and, without gates, A; rows of x or dy in blocks; dW_out; of all rows dy or dx.
  const int64_t blocks = (C + kernels::kPanelRows - 1) / kernels::kPanelRows * kernels::kPanelRows;
  const int64_t rows = kernels::padded(static_cast<int64_t>(std::ceil(max_rows)));
  const int64_t back = lanes * 4 * I + kernels::kPanelRows * blocks + C * I + rows * C;
  return static_cast<double>(std::min<int64_t>(at::get_num_threads(), E) *
                             (backward ? back : forward));
}

MoeAccount of_rows(const MoeConfig& config, int64_t dim, const Rows& rows,
                   torch::ScalarType dtype) {
  const bool narrow = dtype == torch::kBFloat16;
  SIGMA_CHECK(kUsage, narrow || dtype == torch::kFloat,
              "account: expected float32 or bfloat16, got {}", torch::toString(dtype));
  const double w = narrow ? 2 : kFloatBytes;
  const bool gated = config.expert_activation == "swiglu";
  const auto C = static_cast<double>(dim), E = static_cast<double>(config.num_experts);
  const auto T = static_cast<double>(rows.tokens), R = static_cast<double>(rows.room);
  const auto I = static_cast<double>(config.expert_width(dim));
  const auto W = static_cast<double>(config.shared_width(dim));
  const double halves = gated ? 2 : 1;  // of a row of Z

  MoeAccount a{.tokens = rows.tokens, .pairs = rows.room};
  const auto ffn_parameters = [&](double width) {
    const double biases = config.expert_bias && width > 0 ? halves * width + C : 0;
    return (halves + 1) * C * width + biases;
  };
  const double router = E * C, expert = ffn_parameters(I), shared = ffn_parameters(W);
  a.parameters = router + shared + E * expert;
  a.active_parameters = router + shared + (T > 0 ? rows.used / T : 0) * expert;
  a.weight_bytes = kFloatBytes * router + w * (shared + E * expert);
  a.touched_weight_bytes = kFloatBytes * router + w * (shared + rows.touched * expert);
  a.gradient_bytes = kFloatBytes * a.parameters;

  const bool tokens_choose = config.router.kind == "token_choice";
  a.saved.x = T * C * w;
  a.saved.z = (narrow ? R : rows.columns) * halves * I * w;
  const double by_token = kIntBytes * (R + T + 1);  // of the plan; the CPU's backward needs none
  a.saved.plan = kIntBytes * (2 * R + E + 1) + (narrow ? by_token : 0);
  a.saved.pair_weight = kFloatBytes * R;
  if (tokens_choose && config.router.normalize) a.saved.pair_weight += kFloatBytes * (R + T);
  a.saved.router = kFloatBytes * T * (narrow ? E + C : E);
  a.saved.pairs = kIndexBytes * R * (tokens_choose ? 2 : 3);
  a.saved.shared = T * W * (gated ? 4 : 2) * w;  // z, silu of its gate, A; gelu: z, A
  if (narrow) a.saved.weights = w * (a.parameters - router);

  // y, dy, dx and the parts of a sum are [T,C]. Logits live as long as the forward.
  const double whole = T * C * w, expert_rows = R * C * w, hidden = R * I * w;
  const double logits = kFloatBytes * T * E, numbers = kFloatBytes * R;
  double forward = 0, backward = 0;
  if (narrow) {  // rows are gathered, X; then A, Y
    forward = std::max(expert_rows, hidden + expert_rows + whole);
    backward = 2 * expert_rows + (halves + 2) * hidden + numbers + whole;  // G, dX, dA, dZ, gA
  } else {
    const auto panels = [&](bool back) {
      return kFloatBytes *
             panel_numbers(dim, config.expert_width(dim), config.num_experts, rows.max, back);
    };
    const bool by_image = config.balance.scope == "sequence";  // the losses number their pairs
    forward =
        by_token + whole + numbers + std::max(panels(false), by_image ? kIndexBytes * R : 0.0);
    backward = whole + 2 * numbers + std::max(2 * numbers, panels(true));
  }
  a.forward_workspace = logits + forward;
  a.backward_workspace = whole + backward;
  if (W > 0) {  // computed after the routed experts; on the way back before them
    const double later = kFloatBytes * (a.parameters - C * W);  // gradients that are not there yet
    a.forward_workspace = logits + std::max(forward - a.saved.shared, 3 * whole);
    a.backward_workspace =
        whole + std::max(halves * T * W * w - later, whole + backward - a.saved.shared);
  }

  const double products = halves + 1;
  a.forward_flops = 2 * (products * C * (rows.used * I + T * W) + T * router);
  a.backward_flops = 2 * a.forward_flops;
  a.experts_touched = rows.touched;
  a.min_rows = rows.min;
  a.mean_rows = rows.used / E;
  a.max_rows = rows.max;
  a.max_violation = rows.used > 0 ? rows.max / a.mean_rows - 1 : 0;
  return a;
}

}  // namespace

double MoeAccount::peak_bytes() const {
  return saved.total() - saved.x + std::max(forward_workspace, gradient_bytes + backward_workspace);
}

MoeAccount account(const MoeConfig& config, int64_t dim, int64_t tokens, torch::ScalarType dtype) {
  return of_rows(config, dim, uniform_rows(config, tokens), dtype);
}

MoeAccount account(const MoeConfig& config, int64_t dim, const Plan& plan,
                   torch::ScalarType dtype) {
  return of_rows(config, dim, rows_of(config, plan), dtype);
}

double expected_experts_touched(int64_t experts, int64_t chosen, int64_t tokens) {
  const auto E = static_cast<double>(experts);
  return E * (1 - std::pow(1 - static_cast<double>(chosen) / E, static_cast<double>(tokens)));
}

double balanced_rows(torch::ScalarType dtype, double bandwidth, double rate) {
  return static_cast<double>(torch::elementSize(dtype)) * rate / (2 * bandwidth);
}

}  // namespace sigma
