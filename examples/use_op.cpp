// One operator on tensors of one's own: multi-token attention over a grid of 4 x 4 tokens, its
// kernel learned by autograd.
#include <torch/types.h>

#include <cmath>
#include <cstdio>

#include "sigma/attention/multi_token_op.h"
#include "sigma/base/random.h"

int main() {
  constexpr int64_t B = 2, H = 2, N = 16, D = 8;
  const auto normal = [](uint32_t site) {
    torch::Tensor out = torch::empty({B, H, N, D});
    sigma::fill_normal(out, {.seed = 1}, sigma::Purpose::kEval, site, torch::arange(B));
    return out;
  };
  sigma::MultiTokenInput input;
  input.q = normal(0);
  input.k = normal(1);
  input.v = normal(2);
  input.layout.grid = {.frames = 1, .height = 4, .width = 4};
  input.before.queries = sigma::centred_steps({.frames = 1, .height = 1, .width = 1});
  input.before.keys = sigma::centred_steps({.frames = 1, .height = 3, .width = 3});
  // 1 in the middle, else 0: dense attention.
  torch::Tensor kernel = torch::zeros({H, 1, 9});
  kernel.select(2, 4).fill_(1);
  input.before.kernel = kernel.requires_grad_();

  const torch::Tensor out = sigma::multi_token_attention(input).out;
  const torch::Tensor dense =
      torch::softmax(input.q.matmul(input.k.transpose(2, 3)) / std::sqrt(double{D}), 3)
          .matmul(input.v);
  out.pow(2).sum().backward();
  const double error = (out - dense).abs().max().item<double>();
  std::printf("out [%lld,%lld,%lld,%lld], max |out - dense| %.1e, |d kernel| %.3f\n",
              static_cast<long long>(out.size(0)), static_cast<long long>(out.size(1)),
              static_cast<long long>(out.size(2)), static_cast<long long>(out.size(3)), error,
              kernel.grad().norm().item<double>());
  // float32 sums of 16 terms of size about 1: a few epsilon each.
  return error < 1e-5 && kernel.grad().norm().item<double>() > 0 ? 0 : 1;
}
