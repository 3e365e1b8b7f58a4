// A mixture of experts on an NVIDIA GPU in bfloat16: the grouped_mm engine against the plain recipe
// over torch._grouped_mm (sort, gather, product, activation, product, index_add, autograd) and a
// dense product, in one run.
//   build-cuda/bench/moe_gpu [--json] [--check]
//
// Floor: 6 C I operations a pair of token and expert forward, 12 more backward, at the rate of a
// dense product. Router, order and sums are inside the time. --check exits 1 when the engine is
// slower than the recipe; a copy to the host inside the engine fails the run.
#include <c10/cuda/CUDAFunctions.h>
#include <torch/autograd.h>
#include <torch/cuda.h>
#include <torch/types.h>

#include "bench/timing.h"
#include "sigma/base/config.h"
#include "sigma/moe/experts.h"
#include "sigma/moe/router.h"

namespace {

using namespace sigma::bench;
using torch::Tensor;

constexpr int kRepeats = 20;
constexpr int kCalls = 5;  // in one timing

struct Case {
  int64_t T, C, I, E, K;
  bool zipf = false;
};

struct Weights {
  Tensor router, w_in, w_out;
};

double gpu_seconds(const std::function<void()>& f) {
  const auto several = [&] {
    for (int i = 0; i < kCalls; ++i) f();
    torch::cuda::synchronize();
  };
  return seconds(several, kRepeats) / kCalls;
}

Tensor ours(const Tensor& x, const Weights& w, int64_t K) {
  const Tensor logits = torch::linear(x.to(torch::kFloat), w.router);
  const sigma::Routing r = sigma::route({}, K, logits, {}, 1);
  const sigma::Plan plan =
      sigma::make_plan(r.pair_token, r.pair_expert, x.size(0), w.router.size(0));
  return sigma::run_experts("grouped_mm", x, {w.w_in, w.w_out, {}, {}}, r.pair_weight, plan);
}

Tensor recipe(const Tensor& x, const Weights& w, int64_t K) {
  const Tensor scores = torch::softmax(torch::linear(x.to(torch::kFloat), w.router), -1);
  const auto [weights, chosen] = scores.topk(K, -1);
  const Tensor expert = chosen.flatten();
  const Tensor order = expert.argsort(/*stable=*/true, 0, false);
  const Tensor token = order.div(K, "floor");
  const Tensor counts =
      torch::zeros({w.router.size(0)}, expert.options().dtype(torch::kInt))
          .scatter_add(0, expert, torch::ones_like(expert, expert.options().dtype(torch::kInt)));
  const Tensor ends = counts.cumsum(0, torch::kInt);
  const auto h =
      at::_grouped_mm(x.index_select(0, token), w.w_in.transpose(1, 2), ends).chunk(2, -1);
  const Tensor y = at::_grouped_mm(torch::silu(h[0]) * h[1], w.w_out.transpose(1, 2), ends);
  const Tensor g = weights.flatten().index_select(0, order).unsqueeze(1);
  return torch::zeros_like(x).index_add(0, token, (y * g).to(x.scalar_type()));
}

// Forward, and forward with backward.
std::pair<double, double> times(const std::function<Tensor()>& f, const Tensor& upstream,
                                const std::vector<Tensor>& leaves) {
  const double forward = gpu_seconds([&] {
    const torch::NoGradGuard no_grad;
    f();
  });
  const double both =
      gpu_seconds([&] { torch::autograd::grad({f()}, leaves, {upstream}, {}, false, true); });
  return {forward, both};
}

double dense_rate() {
  const int64_t n = 8192;
  const Tensor a = torch::ones({n, n}, torch::dtype(torch::kBFloat16).device(torch::kCUDA));
  return 2.0 * n * n * n / gpu_seconds([&] { torch::mm(a, a); });
}

}  // namespace

int main(int argc, char** argv) {
  if (!torch::cuda::is_available()) {
    fmt::print(stderr, "no NVIDIA GPU here: skipped\n");
    return 0;
  }
  const bool json = flag(argc, argv, "--json");
  const double dense = dense_rate() / 1e12;
  if (!json)
    fmt::print("GPU, bfloat16, TFLOP/s; a dense product reaches {:.0f}\n{:38} {:>16} {:>16}\n",
               dense, "", "forward (recipe)", "with grad (recipe)");
  bool missed = false;
  for (const Case& c : {Case{32768, 2048, 768, 128, 8}, Case{32768, 2048, 768, 128, 8, true},
                        Case{65536, 1152, 1152, 16, 2}, Case{8192, 2048, 768, 128, 8}}) {
    const auto leaf = [](const Tensor& t, torch::ScalarType dtype) {
      return t.to(torch::kCUDA, dtype).requires_grad_();
    };
    Tensor x = normal({c.T, c.C}, 1), router = normal({c.E, c.C}, 2) * 0.02;
    if (c.zipf) {  // popularity 1 / (1 + e)
      x.select(1, c.C - 1).fill_(1);
      router.select(1, c.C - 1).copy_(-torch::arange(1.0, c.E + 1.0).log());
    }
    x = leaf(x, torch::kBFloat16);
    const Weights w{leaf(router, torch::kFloat),
                    leaf(normal({c.E, 2 * c.I, c.C}, 3) * 0.02, torch::kBFloat16),
                    leaf(normal({c.E, c.C, c.I}, 4) * 0.02, torch::kBFloat16)};
    const Tensor upstream = normal({c.T, c.C}, 5).to(torch::kCUDA, torch::kBFloat16);
    const std::vector<Tensor> leaves = {x, w.router, w.w_in, w.w_out};
    c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_ERROR);
    const auto once = torch::autograd::grad({ours(x, w, c.K)}, leaves, {upstream}, {}, {}, true);
    c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_DISABLED);
    const auto [forward, both] = times([&] { return ours(x, w, c.K); }, upstream, leaves);
    const auto [plain, plain_both] = times([&] { return recipe(x, w, c.K); }, upstream, leaves);
    const double flops = 6e-12 * static_cast<double>(c.T * c.K * c.C * c.I);
    const bool miss = forward > plain || both > plain_both;
    missed = missed || miss;
    const std::string name =
        fmt::format("T {} C {} I {} E {} K {}{}", c.T, c.C, c.I, c.E, c.K, c.zipf ? " Zipf" : "");
    if (json)
      fmt::print("{}\n", sigma::Json({{"case", name},
                                      {"forward_tflops", flops / forward},
                                      {"recipe_forward_tflops", flops / plain},
                                      {"with_grad_tflops", 3 * flops / both},
                                      {"recipe_with_grad_tflops", 3 * flops / plain_both},
                                      {"dense_tflops", dense}})
                             .dump());
    else
      fmt::print("{:38} {:6.0f} ({:.0f}) {:>8} {:6.0f} ({:.0f}){}\n", name, flops / forward,
                 flops / plain, "", 3 * flops / both, 3 * flops / plain_both,
                 miss ? "  slower than the recipe" : "");
    std::fflush(stdout);
  }
  return flag(argc, argv, "--check") && missed ? 1 : 0;
}
