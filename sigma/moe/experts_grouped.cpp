#include "sigma/moe/experts_grouped.h"

#include <torch/autograd.h>
#include <torch/types.h>

#include "sigma/base/error.h"
#ifdef SIGMA_CUDA
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "sigma/moe/kernels/experts.h"
#include "sigma/moe/kernels/top_k.h"
#endif

namespace sigma {

using torch::Tensor;

#ifdef SIGMA_CUDA
namespace {

using kernels::ExpertActivation;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kVector = 8;        // elements of 16 bytes
constexpr int64_t kMaxGroups = 1024;  // of at::_grouped_mm, exclusive

void check(bool launched) {
  SIGMA_CHECK(kDevice, launched, "mixture of experts: a CUDA launch failed");
}

// The device pointers of a plan.
kernels::ExpertRows rows_of(const Plan& plan) {
  return {.offsets = plan.offsets.data_ptr<int32_t>(),
          .row_token = plan.row_token.data_ptr<int32_t>(),
          .row_pair = plan.row_pair.data_ptr<int32_t>(),
          .token_offsets = plan.token_offsets.data_ptr<int32_t>(),
          .token_rows = plan.token_rows.data_ptr<int32_t>(),
          .E = plan.offsets.size(0) - 1,
          .R = plan.row_token.size(0),
          .T = plan.token_offsets.size(0) - 1,
          .stream = c10::cuda::getCurrentCUDAStream().stream()};
}

const void* or_null(const Tensor& t) { return t.numel() > 0 ? t.const_data_ptr() : nullptr; }

Tensor gathered(const kernels::ExpertRows& rows, const Tensor& x) {
  Tensor out = torch::empty({rows.R, x.size(1)}, x.options());
  check(kernels::gather_rows(rows, x.const_data_ptr(), x.size(1), out.data_ptr()));
  return out;
}

Tensor combined(const kernels::ExpertRows& rows, const Tensor& y, const float* pair_weight,
                const Tensor& b_out) {
  Tensor out = torch::empty({rows.T, y.size(1)}, y.options());
  check(kernels::combine_rows_cuda(rows, y.const_data_ptr(), pair_weight, or_null(b_out), y.size(1),
                                   out.data_ptr()));
  return out;
}

// Gradients of biases [E, width], empty if there are none.
Tensor bias_grad(const kernels::ExpertRows& rows, const Tensor& bias, const Tensor& v,
                 const float* pair_weight) {
  if (bias.numel() == 0) return {};
  Tensor out = torch::empty_like(bias);
  check(kernels::sum_rows(rows, v.const_data_ptr(), pair_weight, v.size(1), out.data_ptr()));
  return out;
}

// Products of all rows; a group is an expert.
Tensor grouped(const Tensor& a, const Tensor& b, const Plan& plan) {
  return at::_grouped_mm(a, b, plan.offsets.slice(0, 1));
}

Tensor weight_grad(const kernels::ExpertRows& rows, const Tensor& left, const Tensor& right,
                   const Plan& plan) {
  Tensor out = grouped(left.t(), right, plan);
  check(kernels::zero_unused(rows, out.size(1) * out.size(2), out.data_ptr()));
  return out;
}

class Grouped : public torch::autograd::Function<Grouped> {
 public:
  // Biases may be empty.
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& w_in,
                        const Tensor& w_out, const Tensor& b_in, const Tensor& b_out,
                        const Tensor& pair_weight, const Plan& plan, int64_t phi) {
    const c10::cuda::CUDAGuard guard(x.device());
    const kernels::ExpertRows rows = rows_of(plan);
    const Tensor Z = grouped(gathered(rows, x), w_in.transpose(1, 2), plan);
    const Tensor A = activated(rows, phi, Z, b_in);
    const Tensor Y = grouped(A, w_out.transpose(1, 2), plan);
    ctx->save_for_backward({x, w_in, w_out, b_in, b_out, pair_weight, Z, plan.offsets,
                            plan.row_token, plan.row_pair, plan.token_offsets, plan.token_rows});
    ctx->saved_data["phi"] = phi;
    return combined(rows, Y, pair_weight.data_ptr<float>(), b_out);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    refuse_second_derivative("grouped_mm");
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &w_in = saved[1], &w_out = saved[2], &b_in = saved[3],
                 &b_out = saved[4], &pair_weight = saved[5], &Z = saved[6];
    const Plan plan{saved[7], saved[8], saved[9], saved[10], saved[11]};
    const c10::cuda::CUDAGuard guard(x.device());
    const kernels::ExpertRows rows = rows_of(plan);
    const auto phi = static_cast<ExpertActivation>(ctx->saved_data["phi"].toInt());
    const float* g = pair_weight.data_ptr<float>();

    const Tensor G = gathered(rows, grads[0].contiguous());
    const Tensor dA = grouped(G, w_out, plan);
    const Tensor dZ = torch::empty_like(Z), gA = torch::empty_like(dA);
    Tensor d_pair = torch::zeros_like(pair_weight);
    check(kernels::activate_rows_backward(rows, phi, Z.const_data_ptr(), dA.const_data_ptr(), g,
                                          G.const_data_ptr(), or_null(b_out), dA.size(1), x.size(1),
                                          dZ.data_ptr(), gA.data_ptr(), d_pair.data_ptr<float>()));
    const Tensor dx = combined(rows, grouped(dZ, w_in, plan), nullptr, torch::empty({0}));
    return {dx,
            weight_grad(rows, dZ, gathered(rows, x), plan),
            weight_grad(rows, G, gA, plan),
            bias_grad(rows, b_in, dZ, nullptr),
            bias_grad(rows, b_out, G, g),
            d_pair,
            Tensor(),
            Tensor()};
  }

 private:
  static Tensor activated(const kernels::ExpertRows& rows, int64_t phi, const Tensor& Z,
                          const Tensor& b_in) {
    const auto kind = static_cast<ExpertActivation>(phi);
    const int64_t I = kind == ExpertActivation::kSwiglu ? Z.size(1) / 2 : Z.size(1);
    Tensor A = torch::empty({rows.R, I}, Z.options());
    check(kernels::activate_rows(rows, kind, Z.data_ptr(), or_null(b_in), I, A.data_ptr()));
    return A;
  }
};

}  // namespace

std::string grouped_refuses(const Tensor& x, const Experts& experts) {
  const int64_t C = experts.w_out.size(1), I = experts.w_out.size(2);
  if (!x.is_cuda()) return fmt::format("expected a GPU, got {}", x.device().str());
  const cudaDeviceProp* gpu = at::cuda::getDeviceProperties(x.device().index());
  if (gpu->major < 9)
    return fmt::format("expected compute capability 9.0, got {}.{}", gpu->major, gpu->minor);
  if (x.scalar_type() != torch::kBFloat16)
    return fmt::format("expected bfloat16, got {}", torch::toString(x.scalar_type()));
  if (C % kVector != 0 || I % kVector != 0)
    return fmt::format("expected widths that 8 divides, got {} and {}", C, I);
  if (experts.w_out.size(0) >= kMaxGroups)
    return fmt::format("expected fewer than {} experts, got {}", kMaxGroups, experts.w_out.size(0));
  return "";
}

Tensor experts_grouped(const Tensor& x, const Experts& experts, const Tensor& pair_weight,
                       const Plan& plan) {
  const auto prepared = [&](const Tensor& t) {
    return t.defined() ? t.to(x.scalar_type()).contiguous() : torch::empty({0}, x.options());
  };
  const ExpertActivation phi = experts.activation == "swiglu" ? ExpertActivation::kSwiglu
                               : experts.activation == "gelu" ? ExpertActivation::kGelu
                                                              : ExpertActivation::kGeluTanh;
  return Grouped::apply(x.contiguous(), prepared(experts.w_in), prepared(experts.w_out),
                        prepared(experts.b_in), prepared(experts.b_out), pair_weight.contiguous(),
                        plan, static_cast<int64_t>(phi));
}

Tensor top_k_cuda(const Tensor& r, int64_t K) {
  const c10::cuda::CUDAGuard guard(r.device());
  const Tensor values = r.contiguous();
  Tensor out = torch::empty({r.size(0), K}, r.options().dtype(torch::kInt64));
  check(kernels::top_k_rows(values.data_ptr<float>(), r.size(0), r.size(1), K,
                            out.data_ptr<int64_t>(), c10::cuda::getCurrentCUDAStream().stream()));
  return out;
}

#else

std::string grouped_refuses(const Tensor&, const Experts&) {
  return "this build has no CUDA (SIGMA_CUDA=1 scripts/setup.sh)";
}
Tensor experts_grouped(const Tensor&, const Experts& experts, const Tensor&, const Plan&) {
  SIGMA_CHECK(kUsage, false, "mlp.engine: grouped_mm: {}", grouped_refuses({}, experts));
}
Tensor top_k_cuda(const Tensor& r, int64_t) {
  SIGMA_CHECK(kFailure, false, "top_k_cuda: {} and a build without CUDA", r.device().str());
}

#endif

}  // namespace sigma
