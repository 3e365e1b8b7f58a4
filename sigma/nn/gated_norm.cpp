#include "sigma/nn/gated_norm.h"

#include <ATen/Parallel.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include "sigma/nn/kernels/gated_norm.h"
#include "sigma/nn/linear.h"

namespace sigma {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// [B,C] whose rows are contiguous and equally far apart in all three.
bool same_rows(const Tensor& p, const Tensor& like) {
  return p.dim() == 2 && p.stride(1) == 1 && p.stride(0) == like.stride(0) &&
         p.scalar_type() == torch::kFloat;
}

const float* pointer(const Tensor& t) { return t.defined() ? t.data_ptr<float>() : nullptr; }
float* writable(const Tensor& t) { return t.defined() ? t.data_ptr<float>() : nullptr; }

class Fused : public torch::autograd::Function<Fused> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& x_in,
                               const std::optional<Tensor>& a_in,
                               const std::optional<Tensor>& gate_in, const Tensor& shift,
                               const Tensor& scale, double eps) {
    const Tensor x = x_in.contiguous();
    const Tensor a = a_in ? a_in->contiguous() : Tensor();
    const Tensor gate = gate_in.value_or(Tensor());
    const int64_t B = x.size(0);
    const int64_t N = x.size(1);
    const int64_t C = x.size(2);
    const Tensor h = a.defined() ? torch::empty_like(x) : x;
    const Tensor y = torch::empty_like(x);
    const Tensor stats = torch::empty({B, N, 2}, x.options());
    const kernels::GatedNormForward k{.N = N,
                                      .C = C,
                                      .stride = shift.stride(0),
                                      .x = pointer(x),
                                      .a = pointer(a),
                                      .gate = pointer(gate),
                                      .shift = pointer(shift),
                                      .scale = pointer(scale),
                                      .h = a.defined() ? writable(h) : nullptr,
                                      .y = writable(y),
                                      .stats = writable(stats),
                                      .eps = static_cast<float>(eps)};
    at::parallel_for(
        0, B, 1, [&](int64_t first, int64_t last) { kernels::gated_norm_forward(k, first, last); });
    ctx->save_for_backward({h, a, gate, scale, stats});
    ctx->set_materialize_grads(false);
    if (!a.defined()) return {y};
    return {y, h};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &h = saved[0], &a = saved[1], &gate = saved[2], &scale = saved[3],
                 &stats = saved[4];
    const Tensor grad_y = grads[0].defined() ? grads[0].contiguous() : torch::zeros_like(h);
    const Tensor grad_h = grads.size() > 1 && grads[1].defined() ? grads[1].contiguous() : Tensor();
    const Tensor grad_x = torch::empty_like(h);
    const Tensor grad_a = a.defined() ? torch::empty_like(h) : Tensor();
    const auto like_rows = [&] { return torch::empty({h.size(0), h.size(2)}, h.options()); };
    const Tensor grad_gate = a.defined() ? like_rows() : Tensor();
    const Tensor grad_shift = like_rows();
    const Tensor grad_scale = like_rows();
    const kernels::GatedNormBackward k{.N = h.size(1),
                                       .C = h.size(2),
                                       .stride = scale.stride(0),
                                       .h = pointer(h),
                                       .a = pointer(a),
                                       .gate = pointer(gate),
                                       .scale = pointer(scale),
                                       .stats = pointer(stats),
                                       .grad_y = pointer(grad_y),
                                       .grad_h = pointer(grad_h),
                                       .grad_x = writable(grad_x),
                                       .grad_a = writable(grad_a),
                                       .grad_gate = writable(grad_gate),
                                       .grad_shift = writable(grad_shift),
                                       .grad_scale = writable(grad_scale)};
    at::parallel_for(0, h.size(0), 1, [&](int64_t first, int64_t last) {
      kernels::gated_norm_backward(k, first, last);
    });
    return {grad_x, grad_a, grad_gate, grad_shift, grad_scale, Tensor()};
  }
};

}  // namespace

GatedNorm gated_norm_reference(const Tensor& x, const Tensor& a, const Tensor& gate,
                               const Tensor& shift, const Tensor& scale, double eps) {
  const Tensor h = a.defined() ? torch::addcmul(x, a, gate.unsqueeze(1)) : x;
  const Tensor normed = torch::layer_norm(at_least_float(h), {h.size(-1)}, {}, {}, eps);
  return {.h = h, .y = torch::addcmul(shift.unsqueeze(1), normed, scale.unsqueeze(1) + 1)};
}

GatedNorm gated_norm(const Tensor& x, const Tensor& a, const Tensor& gate, const Tensor& shift,
                     const Tensor& scale, double eps) {
  const bool fused = x.is_cpu() && x.scalar_type() == torch::kFloat && same_rows(shift, shift) &&
                     same_rows(scale, shift) &&
                     (!a.defined() || (a.scalar_type() == torch::kFloat && same_rows(gate, shift)));
  if (!fused) return gated_norm_reference(x, a, gate, shift, scale, eps);
  using Optional = std::optional<Tensor>;
  const variable_list out =
      Fused::apply(x, a.defined() ? Optional(a) : std::nullopt,
                   a.defined() ? Optional(gate) : std::nullopt, shift, scale, eps);
  return {.h = a.defined() ? out[1] : x, .y = out[0]};
}

}  // namespace sigma
