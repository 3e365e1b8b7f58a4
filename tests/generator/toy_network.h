// A network without weights whose output is a formula: u = c_in x, j = flat element index inside a
// sample,
//   G = 0.8 tanh(1.3 u + 0.4) + 0.5 cos(3 t) - 0.3 sin(2 s) + 0.1 label + 0.05 (j mod 5).
// It keeps what it was called with.
#pragma once

#include <torch/types.h>

#include <vector>

#include "sigma/generator/network.h"
#include "sigma/generator/path.h"

namespace sigma {

class ToyNetwork : public Network {
 public:
  struct Call {
    torch::Tensor x, t, s, labels, G;
    Context context;
    bool grad = false;
  };

  explicit ToyNetwork(int64_t num_classes = 0) : num_classes_(num_classes) {}

  Output forward(const torch::Tensor& x, const torch::Tensor& t, const torch::Tensor& s,
                 const Condition& condition, const Context& context) override {
    const torch::Tensor j =
        (torch::arange(x[0].numel(), x.device()) % 5).view(x[0].sizes()).to(x.scalar_type());
    torch::Tensor G = 0.8 * torch::tanh(1.3 * x + 0.4) + expand_times(0.5 * torch::cos(3 * t), x) -
                      expand_times(0.3 * torch::sin(2 * s), x) + 0.05 * j;
    if (condition.labels.defined())
      G = G + expand_times(0.1 * condition.labels.to(torch::kDouble), x);
    calls.push_back({x, t, s, condition.labels, G, context, torch::GradMode::is_enabled()});
    return {.value = G, .losses = {}, .statistics = {}};
  }
  int64_t num_classes() const override { return num_classes_; }
  double flops() const override { return 0; }

  std::vector<Call> calls;

 private:
  int64_t num_classes_;
};

}  // namespace sigma
