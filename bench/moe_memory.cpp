// What a mixture of experts costs in bytes and operations at every batch size, beside dense mlps of
// equal operations and of equal parameters, and what it really takes on this machine's CPU.
//   build/bench/moe_memory [--json] [--check] [--bandwidth TB/s] [--rate TFLOP/s]
//
// Bytes in bfloat16 and least times by the account (sigma/moe/account.h), for an H100 unless told:
// copying 3.02 TB/s, a dense product 787 TFLOP/s. The routing is that of normal tokens through the
// router of a fresh MixtureOfExperts. Measured: a forward and a backward on the CPU, float32, with
// freed blocks given back at once: by default glibc keeps many, which are no part of the account.
// --check exits 1 where the account is off by more than 25 %, or where experts touched differ from
// their expectation by more than 5 %.
#include <ATen/Parallel.h>
#include <malloc.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cmath>
#include <string>

#include "bench/peak_memory.h"
#include "bench/timing.h"
#include "sigma/base/config.h"
#include "sigma/moe/account.h"

namespace {

using namespace sigma::bench;
using sigma::MoeAccount;
using sigma::MoeConfig;
using torch::Tensor;

constexpr int kThreads = 2;
constexpr int64_t kTokens = 256;    // of an image
constexpr int kReturned = 1 << 20;  // larger blocks leave the process when freed
constexpr double kAccountOff = 0.25;
constexpr double kTouchedOff = 0.05;

struct Shape {
  int64_t C, I, E, K;
  MoeConfig config(int64_t shared, int64_t width) const {
    return {.num_experts = E,
            .num_chosen = K,
            .num_shared = shared,
            .expert_ratio = (static_cast<double>(width) + 1e-6) / static_cast<double>(C)};
  }
  std::string name() const { return fmt::format("C {} I {} E {} K {}", C, I, E, K); }
};

double number(int argc, char** argv, const std::string& name, double fallback) {
  for (int i = 1; i + 1 < argc; ++i)
    if (argv[i] == name) return std::stod(argv[i + 1]);
  return fallback;
}

struct Machine {
  double bandwidth, rate;  // bytes and operations a second
};

// DenseMlp of a hidden width: its weights in bfloat16, and x, fc1's output and its activation kept.
struct Dense {
  double parameters, weight_bytes, saved_bytes, flops;
  Dense(double C, double width, double T)
      : parameters(2 * C * width + width + C),
        weight_bytes(2 * parameters),
        saved_bytes(2 * T * (C + 2 * width)),
        flops(4 * T * C * width) {}
};

// The plan of the first T of `x`. Experts of width 1: the router is the same, and nothing else is
// asked.
sigma::Plan routed(const Shape& s, const Tensor& router, const Tensor& x) {
  const int64_t T = x.size(0);
  const auto routing = sigma::route({}, s.K, torch::linear(x, router), {}, T / kTokens);
  return sigma::make_plan(routing.pair_token, routing.pair_expert, T, s.E);
}

sigma::Json row_json(const Shape& s, int64_t images, const MoeAccount& a, double expected,
                     const Machine& m) {
  return {{"case", s.name()},
          {"images", images},
          {"tokens", a.tokens},
          {"experts_touched", a.experts_touched},
          {"experts_touched_expected", expected},
          {"rows", {a.min_rows, a.mean_rows, a.max_rows}},
          {"max_violation", a.max_violation},
          {"parameters", a.parameters},
          {"active_parameters", a.active_parameters},
          {"weight_bytes", a.weight_bytes},
          {"touched_weight_bytes", a.touched_weight_bytes},
          {"saved",
           {{"x", a.saved.x},
            {"z", a.saved.z},
            {"plan", a.saved.plan},
            {"pair_weight", a.saved.pair_weight},
            {"router", a.saved.router},
            {"pairs", a.saved.pairs},
            {"weights", a.saved.weights}}},
          {"forward_workspace", a.forward_workspace},
          {"backward_workspace", a.backward_workspace},
          {"forward_flops", a.forward_flops},
          {"backward_flops", a.backward_flops},
          {"weights_seconds", a.weights_seconds(m.bandwidth)},
          {"math_seconds", a.math_seconds(m.rate)}};
}

sigma::Json row_json(const Dense& d, const Machine& m) {
  return {{"parameters", d.parameters},
          {"weight_bytes", d.weight_bytes},
          {"saved_bytes", d.saved_bytes},
          {"forward_flops", d.flops},
          {"weights_seconds", d.weight_bytes / m.bandwidth},
          {"math_seconds", d.flops / m.rate}};
}

void print_dense(const std::string& name, const Dense& d, const Machine& m) {
  fmt::print(
      "{:>6} {:>12} {:>15} {:>8.1f} {:>8} {:>8.1f} {:>8} {:>8} {:>8} {:>9.1f} {:>8.3f} {:>8.3f}\n",
      name, "", "", d.weight_bytes / 1e6, "", d.saved_bytes / 1e6, "", "", "", d.flops / 1e9,
      d.weight_bytes / m.bandwidth * 1e3, d.flops / m.rate * 1e3);
}

// Whether experts touched are as expected.
bool shape_rows(const Shape& s, const Machine& m, bool json) {
  const torch::NoGradGuard no_grad;
  sigma::MixtureOfExperts moe(s.C, s.config(0, 1));
  initialize(moe, 1);
  const Tensor router = moe.named_parameters()["router"];
  const MoeConfig config = s.config(0, s.I);
  const double rows = sigma::balanced_rows(torch::kBFloat16, m.bandwidth, m.rate);
  const double meet = rows * static_cast<double>(s.E) / static_cast<double>(s.K);
  const MoeAccount one = account(config, s.C, 1, torch::kBFloat16);
  if (!json) {
    fmt::print(
        "\n{}: {:.1f} M parameters, {:.1f} M active; weights and operations take equally "
        "long at {:.0f} rows an expert, {:.0f} tokens\n",
        s.name(), one.parameters / 1e6, one.active_parameters / 1e6, rows, meet);
    fmt::print("{:>6} {:>12} {:>15} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>9} {:>8} {:>8}\n",
               "images", "touched", "rows", "weights", "read", "kept", "of it Z", "forward",
               "backward", "GFLOP", "ms read", "ms math");
  }
  constexpr int64_t kMost = 64;
  const Tensor x = normal({kMost * kTokens, s.C}, 1);
  bool fine = true;
  for (const int64_t images : {1L, 2L, 4L, 8L, 16L, kMost}) {
    const int64_t T = images * kTokens;
    const sigma::Plan plan = routed(s, router, x.slice(0, 0, T));
    const MoeAccount a = account(config, s.C, plan, torch::kBFloat16);
    const double expected = sigma::expected_experts_touched(s.E, s.K, T);
    fine = fine && std::abs(a.experts_touched / expected - 1) <= kTouchedOff;
    const auto C = static_cast<double>(s.C),
               width = 1.5 * static_cast<double>(s.I);  // 6 C I = 4 C W
    const Dense equal_operations(C, width * static_cast<double>(s.K), static_cast<double>(T));
    const Dense equal_parameters(C, width * static_cast<double>(s.E), static_cast<double>(T));
    if (json) {
      sigma::Json row = row_json(s, images, a, expected, m);
      row["balanced_rows"] = rows;
      row["balanced_tokens"] = meet;
      row["dense_equal_operations"] = row_json(equal_operations, m);
      row["dense_equal_parameters"] = row_json(equal_parameters, m);
      fmt::print("{}\n", row.dump());
    } else {
      fmt::print(
          "{:>6} {:>12} {:>15} {:>8.1f} {:>8.1f} {:>8.1f} {:>8.1f} {:>8.1f} {:>8.1f} "
          "{:>9.1f} {:>8.3f} {:>8.3f}\n",
          images, fmt::format("{} / {:.1f}", a.experts_touched, expected),
          fmt::format("{}/{:.0f}/{}", a.min_rows, a.mean_rows, a.max_rows), a.weight_bytes / 1e6,
          a.touched_weight_bytes / 1e6, (a.saved.total() - a.saved.weights) / 1e6, a.saved.z / 1e6,
          a.forward_workspace / 1e6, a.backward_workspace / 1e6, a.forward_flops / 1e9,
          a.weights_seconds(m.bandwidth) * 1e3, a.math_seconds(m.rate) * 1e3);
      print_dense("= work", equal_operations, m);
      print_dense("= size", equal_parameters, m);
    }
    std::fflush(stdout);
  }
  return fine;
}

// Whether the account of a forward and a backward on the CPU holds.
bool measured_row(const Shape& s, int64_t shared, int64_t images, bool json) {
  const MoeConfig config = s.config(shared, s.I);
  const Tensor x = normal({images, kTokens, s.C}, 2).requires_grad_();
  const Tensor dy = normal({images, kTokens, s.C}, 3);
  const auto fresh = [&] {
    auto moe = std::make_shared<sigma::MixtureOfExperts>(s.C, config);
    initialize(*moe, 1);
    return moe;
  };
  // Buffers that the products keep are made by another layer.
  fresh()->forward(x, {.training = true}).value.backward(dy);
  x.mutable_grad().reset();
  const auto moe = fresh();
  const double bytes = peak_bytes([&] { moe->forward(x, {.training = true}).value.backward(dy); });
  const sigma::Routing& r = moe->last_routing();
  const sigma::Plan plan = sigma::make_plan(r.pair_token, r.pair_expert, images * kTokens, s.E);
  const double expected = account(config, s.C, plan, torch::kFloat).peak_bytes();
  const std::string name = fmt::format("{}, {} shared, {} images", s.name(), shared, images);
  if (bytes < 0) {
    fmt::print(stderr, "{}: not measured, /proc/self/clear_refs cannot be written\n", name);
    return true;
  }
  const double ratio = bytes / expected;
  if (json)
    fmt::print("{}\n", sigma::Json({{"case", name + ", CPU, float32"},
                                    {"peak_bytes", bytes},
                                    {"peak_bytes_account", expected},
                                    {"ratio", ratio}})
                           .dump());
  else fmt::print("{:48} {:10.1f} {:10.1f} {:8.2f}\n", name, bytes / 1e6, expected / 1e6, ratio);
  std::fflush(stdout);
  return std::abs(ratio - 1) <= kAccountOff;
}

}  // namespace

int main(int argc, char** argv) {
  mallopt(M_MMAP_THRESHOLD, kReturned);
  at::set_num_threads(kThreads);
  const bool json = flag(argc, argv, "--json");
  const Machine machine{.bandwidth = number(argc, argv, "--bandwidth", 3.02) * 1e12,
                        .rate = number(argc, argv, "--rate", 787) * 1e12};
  if (!json)
    fmt::print(
        "MB in bfloat16; experts touched true / expected; rows of an expert min/mean/max; "
        "kept for the backward, beside copies of the weights; forward, backward: workspace\n");
  bool fine = true;
  for (const Shape& s : {Shape{512, 256, 64, 6}, {384, 192, 16, 2}, {2048, 768, 128, 8}})
    fine = shape_rows(s, machine, json) && fine;
  if (!json)
    fmt::print("\n{:48} {:>10} {:>10} {:>8}\n", "forward and backward, CPU, float32, 2 threads",
               "peak MB", "account", "ratio");
  for (const int64_t shared : {0, 1}) {
    fine = measured_row({384, 192, 16, 2}, shared, 64, json) && fine;
    fine = measured_row({512, 256, 64, 6}, shared, 16, json) && fine;
  }
  return flag(argc, argv, "--check") && !fine ? 1 : 0;
}
