// A mixture of experts on the CPU against at::mm at equal row counts, and against a loop over experts
// with boolean masks, in one run.
//   build/bench/moe_cpu [--json] [--check]
//
// Floor: 6 C I operations a pair of token and expert forward, 12 more backward; what at::mm reaches on
// products of T K / E rows, as many operations in all, is the rate to compare with. Router, order and
// sums are inside the time. All sides take turns, one call each, and a ratio is the median of those of
// neighbours: what slows the machine down for a while slows both. Every backward makes new gradients.
// --check exits 1 when a goal is missed: of mm .80 forward and .70 with gradients in every case, of the
// loop 3 for 64 experts of even loads. Under Zipf loads at::mm alone can be within 3 times the loop.
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <chrono>
#include <functional>
#include <vector>

#include "bench/timing.h"
#include "sigma/base/config.h"
#include "sigma/moe/layer.h"

namespace {

using namespace sigma::bench;
using torch::Tensor;

constexpr int kThreads = 2;
constexpr int kRepeats = 11;
constexpr int kLoopRepeats = 3;  // it takes seconds

using Times = std::vector<double>;

double once(const std::function<void()>& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median_ratio(const Times& a, const Times& b) {
  Times ratios;
  for (size_t i = 0; i < a.size(); ++i) ratios.push_back(a[i] / b[i]);
  return median(std::move(ratios));
}

struct Case {
  int64_t T, C, I, E, K;
  bool zipf = false;
};

// at::mm on one expert's rows, E times: as many operations as the mixture has.
struct Products {
  explicit Products(const Case& c)
      : experts(c.E),
        x(normal({c.T * c.K / c.E, c.C}, 1)),
        w_in(normal({2 * c.I, c.C}, 2)),
        a(normal({c.T * c.K / c.E, c.I}, 3)),
        w_out(normal({c.C, c.I}, 4)),
        z(normal({c.T * c.K / c.E, 2 * c.I}, 5)) {}
  void forward() const {
    for (int64_t e = 0; e < experts; ++e) {
      torch::mm(x, w_in.t());
      torch::mm(a, w_out.t());
    }
  }
  void backward() const {
    for (int64_t e = 0; e < experts; ++e) {
      torch::mm(x, w_out);
      torch::mm(x.t(), a);
      torch::mm(z, w_in);
      torch::mm(z.t(), x);
    }
  }
  int64_t experts;
  Tensor x, w_in, a, w_out, z;
};

// What a direct implementation does.
Tensor masked_loop(const Tensor& x, const Tensor& router, const Tensor& w_in, const Tensor& w_out,
                   int64_t K) {
  const Tensor scores = torch::softmax(torch::linear(x, router), -1);
  const auto [weights, chosen] = scores.topk(K, -1);
  Tensor y = torch::zeros_like(x);
  for (int64_t e = 0; e < w_in.size(0); ++e) {
    const Tensor mask = chosen == e;
    const Tensor rows = mask.any(1);
    const Tensor g = (weights * mask).sum(1).index({rows}).unsqueeze(1);
    const auto h = torch::linear(x.index({rows}), w_in[e]).chunk(2, -1);
    y = y.index_put({rows}, torch::linear(torch::silu(h[0]) * h[1], w_out[e]) * g,
                    /*accumulate=*/true);
  }
  return y;
}

}  // namespace

int main(int argc, char** argv) {
  at::set_num_threads(kThreads);
  bool missed = false;
  if (!flag(argc, argv, "--json"))
    fmt::print("{:44} {:>10} {:>8} {:>12} {:>8} {:>9}\n", "CPU, float32, 2 threads", "forward ms",
               "of mm", "with grad ms", "of mm", "of loop");
  for (const Case& c : {Case{8192, 512, 256, 64, 6}, Case{8192, 512, 256, 64, 6, true},
                        Case{4096, 384, 192, 16, 2}, Case{4096, 384, 192, 16, 2, true}}) {
    sigma::MoeConfig config{.num_experts = c.E, .num_chosen = c.K, .num_shared = 0};
    config.expert_ratio = (static_cast<double>(c.I) + 1e-6) / static_cast<double>(c.C);
    config.engine = "cpu";
    sigma::MixtureOfExperts moe(c.C, config);
    initialize(moe, 1);
    auto parameters = moe.named_parameters();
    Tensor x = normal({1, c.T, c.C}, 9);
    if (c.zipf) {  // popularity 1 / (1 + e): the last channel is 1, its weights the logarithms
      const torch::NoGradGuard no_grad;
      x.select(2, c.C - 1).fill_(1);
      parameters["router"].select(1, c.C - 1).copy_(-torch::arange(1.0, c.E + 1.0).log());
    }
    x.requires_grad_();
    const Tensor upstream = normal({1, c.T, c.C}, 10);
    const Products products(c);
    const auto ours = [&] { return moe.forward(x, {.training = true}).value; };
    const auto loop = [&] {
      return masked_loop(x.view({c.T, c.C}), parameters["router"], parameters["w_in"],
                         parameters["w_out"], c.K);
    };
    const auto no_gradients = [&] {
      x.mutable_grad().reset();
      for (auto& p : parameters) p.value().mutable_grad().reset();
    };

    Times forward, both, theirs, mm_forward, mm_both;
    for (int repeat = -1; repeat < kRepeats; ++repeat) {  // the first warms up
      const bool counts = repeat >= 0;
      const auto turn = [&](Times& times, const std::function<void()>& f) {
        no_gradients();
        const double t = once(f);
        if (counts) times.push_back(t);
      };
      turn(forward, [&] {
        const torch::NoGradGuard no_grad;
        ours();
      });
      turn(mm_forward, [&] { products.forward(); });
      turn(mm_both, [&] {
        products.forward();
        products.backward();
      });
      turn(both, [&] { ours().backward(upstream); });
      if (counts && repeat < kLoopRepeats)
        turn(theirs, [&] { loop().backward(upstream.view({c.T, c.C})); });
    }
    const double flops = 6.0 * static_cast<double>(c.T * c.K * c.C * c.I);
    const double t = median(forward), t_both = median(both);
    const double share = median_ratio(mm_forward, forward);
    const double share_both = median_ratio(mm_both, both);
    const double ratio = median_ratio(theirs, both);
    const double rate = flops / median(mm_forward);
    const bool miss = share < 0.8 || share_both < 0.7 || (c.E == 64 && !c.zipf && ratio < 3);
    missed = missed || miss;
    const std::string name = fmt::format("T {} C {} I {} E {} K {}{}", c.T, c.C, c.I, c.E, c.K,
                                         c.zipf ? " Zipf" : " even");
    if (flag(argc, argv, "--json"))
      fmt::print("{}\n", sigma::Json({{"case", name},
                                      {"forward_ms", t * 1e3},
                                      {"forward_of_mm", share},
                                      {"with_grad_ms", t_both * 1e3},
                                      {"with_grad_of_mm", share_both},
                                      {"with_grad_of_loop", ratio},
                                      {"mm_gflops", rate / 1e9}})
                             .dump());
    else
      fmt::print("{:44} {:10.1f} {:8.2f} {:12.1f} {:8.2f} {:9.2f}  mm {:.0f} GFLOP/s{}\n", name,
                 t * 1e3, share, t_both * 1e3, share_both, ratio, rate / 1e9,
                 miss ? "  goal missed" : "");
    std::fflush(stdout);
  }
  return flag(argc, argv, "--check") && missed ? 1 : 0;
}
