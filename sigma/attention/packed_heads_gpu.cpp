#include <torch/autograd.h>
#include <torch/types.h>

#include "sigma/attention/packed_heads.h"
#include "sigma/base/error.h"
#ifdef SIGMA_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "sigma/attention/kernels/packed_heads.h"
#endif

namespace sigma {

using torch::Tensor;

#ifdef SIGMA_CUDA
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void check(cudaError_t status) {
  SIGMA_CHECK(kDevice, status == cudaSuccess, "packed heads: {}", cudaGetErrorString(status));
}

std::optional<kernels::HeadsType> heads_type(const Tensor& x) {
  switch (x.scalar_type()) {
    case torch::kFloat: return kernels::HeadsType::kFloat32;
    case torch::kHalf: return kernels::HeadsType::kFloat16;
    case torch::kBFloat16: return kernels::HeadsType::kBfloat16;
    default: return {};
  }
}

bool whole_units(int64_t count, const Tensor& x) { return count * x.element_size() % 16 == 0; }

void* or_null(const Tensor& t) { return t.defined() ? t.data_ptr() : nullptr; }

// All but the data.
kernels::PackHeads arguments(const PackInput& in, const Tensor& rows) {
  kernels::PackHeads a{.type = *heads_type(rows),
                       .B = rows.size(0),
                       .N = rows.size(1),
                       .D = in.head_dim,
                       .heads = static_cast<int32_t>(in.heads),
                       .rows = rows.data_ptr(),
                       .batch_stride = rows.stride(0),
                       .row_stride = rows.stride(1),
                       .order = in.order.data_ptr<int64_t>(),
                       .uses = static_cast<int32_t>(in.uses.size())};
  for (size_t i = 0; i < in.uses.size(); ++i) {
    const HeadsUse& use = in.uses[i];
    a.use[i] = {.first = static_cast<int32_t>(use.first),
                .count = static_cast<int32_t>(use.count),
                .turned = use.turned};
  }
  return a;
}

struct Saved : torch::CustomClassHolder {
  PackInput in;  // without rows and rope
  Tensor cos, sin;
  bool interleaved = true;
  torch::Tensor like;  // an empty tensor with the options of rows
  std::vector<int64_t> sizes;

  void angles(kernels::PackHeads& a) const {
    if (!cos.defined()) return;
    a.cos = cos.data_ptr<float>();
    a.sin = sin.data_ptr<float>();
    a.pairs = static_cast<int32_t>(cos.size(1));
    a.interleaved = interleaved;
  }
};

class Pack : public torch::autograd::Function<Pack> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& rows,
                               const c10::intrusive_ptr<Saved>& saved) {
    const c10::cuda::CUDAGuard guard(rows.device());
    const PackInput& in = saved->in;
    kernels::PackHeads a = arguments(in, rows);
    saved->angles(a);
    variable_list out;
    for (size_t i = 0; i < in.uses.size(); ++i) {
      const HeadsUse& use = in.uses[i];
      if (const size_t like = first_like(in, i); like < i) {
        out.push_back(out[like].variable_data());  // written once, of its own to autograd
        continue;
      }
      out.push_back(
          torch::empty({rows.size(0), use.count, rows.size(1), in.head_dim}, rows.options()));
      a.use[i].data = out.back().data_ptr();
    }
    check(kernels::pack_heads(a, c10::cuda::getCurrentCUDAStream()));
    out.push_back(rows.slice(-1, in.heads * in.head_dim).clone());
    saved->sizes = rows.sizes().vec();
    saved->like = torch::empty({0}, rows.options());
    ctx->saved_data["saved"] = c10::IValue::make_capsule(saved);
    ctx->set_materialize_grads(false);
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto capsule = ctx->saved_data["saved"].toCapsule();
    const Saved& saved = static_cast<const Saved&>(*capsule);
    const c10::cuda::CUDAGuard guard(saved.like.device());
    const Tensor rows = torch::empty(saved.sizes, saved.like.options());
    kernels::PackHeads a = arguments(saved.in, rows);
    saved.angles(a);
    for (size_t i = 0; i < saved.in.uses.size(); ++i) {
      if (grads[i].defined()) grads[i] = grads[i].contiguous();
      a.use[i].data = or_null(grads[i]);
    }
    check(kernels::pack_heads_grad(a, c10::cuda::getCurrentCUDAStream()));
    const Tensor rest = rows.slice(-1, saved.in.heads * saved.in.head_dim);
    if (grads.back().defined()) rest.copy_(grads.back());
    else rest.zero_();
    return {rows, Tensor()};
  }
};

class Gated : public torch::autograd::Function<Gated> {
 public:
  using Maybe = std::optional<Tensor>;

  static Tensor forward(AutogradContext* ctx, const Tensor& gates_in, const Tensor& order,
                        const Maybe& beside, const Tensor& first, const Maybe& second,
                        const Maybe& third) {
    const c10::cuda::CUDAGuard guard(first.device());
    variable_list branches = {first.contiguous()};
    for (const Maybe& x : {second, third})
      if (x) branches.push_back(x->contiguous());
    const Tensor gates = gates_in.contiguous();
    const Tensor rest = beside ? beside->contiguous() : Tensor();
    const int64_t H = first.size(1), D = first.size(3);
    const Tensor rows = torch::empty({gates.size(0), gates.size(1), H * D}, first.options());
    kernels::GatedSum a = arguments(branches, gates, order, rows);
    a.beside = or_null(rest);
    check(kernels::gated_sum(a, c10::cuda::getCurrentCUDAStream()));
    ctx->saved_data["beside"] = beside.has_value();
    branches.push_back(gates);
    branches.push_back(order);
    ctx->save_for_backward(branches);
    return rows;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list branches = ctx->get_saved_variables();
    const Tensor order = branches.back();
    branches.pop_back();
    const Tensor gates = branches.back();
    branches.pop_back();
    const c10::cuda::CUDAGuard guard(gates.device());
    const Tensor rows = grads[0].contiguous();
    kernels::GatedSum a = arguments(branches, gates, order, rows);
    variable_list out(6);
    out[0] = torch::empty_like(gates);
    a.grad_gates = out[0].data_ptr();
    if (ctx->saved_data["beside"].toBool()) {
      out[2] = torch::empty({a.B, a.H, a.N - a.Ng, a.D}, rows.options());
      a.grad_beside = out[2].data_ptr();
    }
    for (size_t i = 0; i < branches.size(); ++i) {
      out[3 + i] = torch::empty_like(branches[i]);
      a.grad_branch[i] = out[3 + i].data_ptr();
    }
    check(kernels::gated_sum_grad(a, c10::cuda::getCurrentCUDAStream()));
    return out;
  }

 private:
  static kernels::GatedSum arguments(const variable_list& branches, const Tensor& gates,
                                     const Tensor& order, const Tensor& rows) {
    kernels::GatedSum a{.type = *heads_type(rows),
                        .B = gates.size(0),
                        .H = branches[0].size(1),
                        .N = gates.size(1),
                        .Ng = branches[0].size(2),
                        .D = branches[0].size(3),
                        .order = order.data_ptr<int64_t>(),
                        .branches = static_cast<int32_t>(branches.size()),
                        .gates = gates.data_ptr(),
                        .rows = rows.data_ptr()};
    for (size_t i = 0; i < branches.size(); ++i) a.branch[i] = branches[i].data_ptr();
    return a;
  }
};

}  // namespace

bool pack_heads_gpu(const PackInput& in, PackedHeads& out) {
  const Tensor& x = in.rows;
  if (!x.is_cuda() || !heads_type(x) || in.uses.size() > kernels::kMaxUses || x.stride(-1) != 1 ||
      !whole_units(in.head_dim, x) || !whole_units(x.size(2), x) || !whole_units(x.stride(0), x) ||
      !whole_units(x.stride(1), x) || reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 != 0)
    return false;
  const auto saved = c10::make_intrusive<Saved>();
  saved->in = in;
  saved->in.rows = Tensor();
  saved->in.rope = nullptr;
  if (in.rope) {
    const auto& [cos, sin] = in.rope->table();
    if (cos.dim() != 2 || cos.scalar_type() != torch::kFloat || cos.requires_grad()) return false;
    saved->cos = cos.contiguous();
    saved->sin = sin.contiguous();
    saved->interleaved = in.rope->interleaved();
  }
  out.uses = Pack::apply(x, saved);
  out.rest = out.uses.back();
  out.uses.pop_back();
  return true;
}

bool gated_sum_gpu(const GatedSumInput& in, Tensor& out) {
  const Tensor& x = in.branches[0];
  if (!x.is_cuda() || !heads_type(x) || in.gates.scalar_type() != x.scalar_type() ||
      in.branches.size() > kernels::kMaxBranches || !whole_units(x.size(3), x))
    return false;
  const auto branch = [&](size_t i) {
    return i < in.branches.size() ? std::optional(in.branches[i]) : std::nullopt;
  };
  out = Gated::apply(in.gates, in.order,
                     in.beside.defined() ? std::optional(in.beside) : std::nullopt, in.branches[0],
                     branch(1), branch(2));
  return true;
}
#else
bool pack_heads_gpu(const PackInput&, PackedHeads&) { return false; }
bool gated_sum_gpu(const GatedSumInput&, Tensor&) { return false; }
#endif

}  // namespace sigma
