#include "sigma/attention/multi_token_convolution.h"

#include <torch/autograd.h>
#include <torch/types.h>

#include <algorithm>
#include <cstdlib>

#include "sigma/base/error.h"
#ifdef SIGMA_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace sigma {

using torch::Tensor;

#ifdef SIGMA_CUDA
kernels::TokenGrid kernel_grid(const TokenLayout& layout) {
  return {.before = static_cast<int>(layout.before),
          .frames = static_cast<int>(layout.grid.frames),
          .height = static_cast<int>(layout.grid.height),
          .width = static_cast<int>(layout.grid.width),
          .after = static_cast<int>(layout.after)};
}

kernels::StepList kernel_steps(const std::vector<GridStep>& steps) {
  kernels::StepList list;
  list.count = static_cast<int>(steps.size());
  for (size_t i = 0; i < steps.size(); ++i)
    list.step[i] = {.f = static_cast<int8_t>(steps[i][0]),
                    .y = static_cast<int8_t>(steps[i][1]),
                    .x = static_cast<int8_t>(steps[i][2])};
  return list;
}

kernels::Element kernel_element(const Tensor& x) {
  if (x.scalar_type() == torch::kBFloat16) return kernels::Element::kBFloat16;
  return x.scalar_type() == torch::kHalf ? kernels::Element::kHalf : kernels::Element::kFloat;
}

kernels::WideConvolution convolution(const Tensor& x, const Tensor& weight, const ScoreMixing& m,
                                     const TokenLayout& layout, int sign) {
  return {.H = x.size(1),
          .D = x.size(3),
          .heads = x.size(0) * x.size(1),
          .grid = kernel_grid(layout),
          .element = kernel_element(x),
          .R = static_cast<int>(weight.size(1)),
          .keys = kernel_steps(m.keys),
          .sign = sign,
          .w = weight.data_ptr<float>(),
          .x = x.data_ptr()};
}

bool kernels_take(const ScoreMixing& m) {
  const auto near = [](const std::vector<GridStep>& steps) {
    return steps.size() <= kernels::kMaxSteps &&
           std::ranges::all_of(steps, [](const GridStep& step) {
             return std::ranges::all_of(step, [](int64_t s) { return std::abs(s) < 128; });
           });
  };
  return near(m.queries) && near(m.keys) && m.queries.size() * m.keys.size() <= 4096;
}

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void check(cudaError_t status) {
  SIGMA_CHECK(kDevice, status == cudaSuccess, "multi_token_attention: {}",
              cudaGetErrorString(status));
}

// What the backward needs beside tensors.
struct Steps : torch::CustomClassHolder {
  ScoreMixing mixing;
  TokenLayout layout;
  int sign = 1;
};

class Convolution : public torch::autograd::Function<Convolution> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight,
                        const ScoreMixing& m, const TokenLayout& layout, int sign) {
    const c10::cuda::CUDAGuard guard(x.device());
    const Tensor in = x.contiguous(), w = weight.contiguous();
    const Tensor wide =
        torch::empty({x.size(0), x.size(1), x.size(2), w.size(1), x.size(3)}, x.options());
    kernels::WideConvolution c = convolution(in, w, m, layout, sign);
    c.by_token = true;
    c.wide = wide.data_ptr();
    check(kernels::convolve(c, c10::cuda::getCurrentCUDAStream()));
    auto saved = c10::make_intrusive<Steps>();
    saved->mixing.keys = m.keys;
    saved->layout = layout;
    saved->sign = sign;
    ctx->save_for_backward({in, w});
    ctx->saved_data["saved"] = c10::IValue::make_capsule(std::move(saved));
    return wide;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list tensors = ctx->get_saved_variables();
    const c10::cuda::CUDAGuard guard(tensors[0].device());
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
    const auto capsule = ctx->saved_data["saved"].toCapsule();
    const Steps& saved = static_cast<const Steps&>(*capsule);
    const Tensor grad = grads[0].contiguous();
    const Tensor grad_x = torch::empty_like(tensors[0]), grad_w = torch::empty_like(tensors[1]);
    kernels::WideConvolution c =
        convolution(tensors[0], tensors[1], saved.mixing, saved.layout, saved.sign);
    c.by_token = true;
    c.gwide = grad.data_ptr();
    c.gx = grad_x.data_ptr();
    const Tensor scratch =
        torch::empty({kernels::convolve_scratch(c)}, grad.options().dtype(torch::kFloat));
    c.scratch = scratch.data_ptr<float>();
    check(kernels::convolve_back(c, stream));
    check(kernels::taps_gradient(c, grad_w.data_ptr<float>(), stream));
    return {grad_x, grad_w, Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

bool takes_wide_convolution(const Tensor& x, const ScoreMixing& m) {
  return x.is_cuda() && x.numel() > 0 && x.size(3) % 8 == 0 && x.size(0) * x.size(1) < 65536 &&
         (x.scalar_type() == torch::kFloat || x.scalar_type() == torch::kHalf ||
          x.scalar_type() == torch::kBFloat16) &&
         kernels_take(m);
}

Tensor wide_convolution(const Tensor& x, const ScoreMixing& m, const TokenLayout& layout,
                        int sign) {
  return Convolution::apply(x, m.kernel.to(torch::kFloat), m, layout, sign);
}
#else
bool takes_wide_convolution(const Tensor&, const ScoreMixing&) { return false; }
Tensor wide_convolution(const Tensor&, const ScoreMixing&, const TokenLayout&, int) {
  fail(ErrorKind::kDevice, "multi_token_attention: this build has no CUDA kernels");
}
#endif

}  // namespace sigma
