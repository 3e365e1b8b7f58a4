#include <torch/autograd.h>
#include <torch/types.h>

#include <algorithm>

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

// What the backward needs, too.
struct Pack : torch::CustomClassHolder {
  int64_t head_dim = 0, width = 0;
  std::vector<HeadsPart> parts;  // turned: only where there are angles
  Tensor order, cos, sin;
  bool interleaved = true;
  std::vector<int64_t> sizes;  // of rows
  torch::TensorOptions options;

  // All but the parts' pointers.
  kernels::PackHeads arguments(const Tensor& rows) const {
    kernels::PackHeads a{.type = *heads_type(rows),
                         .B = rows.size(0),
                         .N = rows.size(1),
                         .D = head_dim,
                         .rows = rows.data_ptr(),
                         .batch_stride = rows.stride(0),
                         .row_stride = rows.stride(1),
                         .order = order.data_ptr<int64_t>(),
                         .interleaved = interleaved,
                         .parts = static_cast<int32_t>(parts.size())};
    if (cos.defined()) {
      a.cos = cos.data_ptr<float>();
      a.sin = sin.data_ptr<float>();
      a.pairs = static_cast<int32_t>(cos.size(1));
    }
    int32_t first = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
      a.part[i].first = first;
      a.part[i].heads = static_cast<int32_t>(parts[i].heads);
      first += a.part[i].heads;
    }
    return a;
  }
};

class PackFunction : public torch::autograd::Function<PackFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& rows,
                               const c10::intrusive_ptr<Pack>& pack) {
    const c10::cuda::CUDAGuard guard(rows.device());
    pack->sizes = rows.sizes().vec();
    pack->options = rows.options();
    kernels::PackHeads a = pack->arguments(rows);
    variable_list out;
    for (size_t i = 0; i < pack->parts.size(); ++i) {
      const HeadsPart& part = pack->parts[i];
      Tensor plain, turned;
      for (const bool turns : part.turned) {
        Tensor& x = turns ? turned : plain;
        if (x.defined()) {
          out.push_back(x.variable_data());  // the same memory, of its own to autograd
          continue;
        }
        x = torch::empty({a.B, part.heads, a.N, a.D}, rows.options());
        out.push_back(x);
      }
      a.part[i].plain = or_null(plain);
      a.part[i].turned = or_null(turned);
    }
    check(kernels::pack_heads(a, c10::cuda::getCurrentCUDAStream()));
    out.push_back(rows.slice(-1, pack->width).clone());
    ctx->saved_data["pack"] = c10::IValue::make_capsule(pack);
    ctx->set_materialize_grads(false);
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto capsule = ctx->saved_data["pack"].toCapsule();
    const Pack& pack = static_cast<const Pack&>(*capsule);
    const c10::cuda::CUDAGuard guard(pack.options.device());
    const Tensor rows = torch::empty(pack.sizes, pack.options);
    kernels::PackHeads a = pack.arguments(rows);
    size_t at = 0;
    for (size_t i = 0; i < pack.parts.size(); ++i) {
      for (size_t reader = 0; reader < pack.parts[i].turned.size(); ++reader, ++at) {
        if (grads[at].defined()) grads[at] = grads[at].contiguous();
        a.part[i].grad[reader] = or_null(grads[at]);
        a.part[i].turns[reader] = pack.parts[i].turned[reader];
      }
    }
    check(kernels::pack_heads_grad(a, c10::cuda::getCurrentCUDAStream()));
    const Tensor rest = rows.slice(-1, pack.width);
    if (grads.back().defined()) rest.copy_(grads.back());
    else rest.zero_();
    return {rows, Tensor()};
  }
};

class GatedFunction : public torch::autograd::Function<GatedFunction> {
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
  const auto fits = [](const HeadsPart& p) { return p.turned.size() <= kernels::kMaxReaders; };
  if (!x.is_cuda() || !heads_type(x) || in.parts.empty() || in.parts.size() > kernels::kMaxParts ||
      !std::all_of(in.parts.begin(), in.parts.end(), fits) || x.stride(-1) != 1 ||
      !whole_units(in.head_dim, x) || !whole_units(x.size(2), x) || !whole_units(x.stride(0), x) ||
      !whole_units(x.stride(1), x) || reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 != 0)
    return false;
  const auto pack = c10::make_intrusive<Pack>();
  pack->head_dim = in.head_dim;
  pack->width = in.width();
  pack->parts = in.parts;
  pack->order = in.order;
  if (in.rope) {
    const auto& [cos, sin] = in.rope->table();
    if (cos.dim() != 2 || cos.scalar_type() != torch::kFloat || cos.requires_grad()) return false;
    pack->cos = cos.contiguous();
    pack->sin = sin.contiguous();
    pack->interleaved = in.rope->interleaved();
  } else {
    for (HeadsPart& part : pack->parts) part.turned.assign(part.turned.size(), false);
  }
  out.heads = PackFunction::apply(x, pack);
  out.rest = out.heads.back();
  out.heads.pop_back();
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
  out = GatedFunction::apply(in.gates, in.order,
                             in.beside.defined() ? std::optional(in.beside) : std::nullopt,
                             in.branches[0], branch(1), branch(2));
  return true;
}
#else
bool pack_heads_gpu(const PackInput&, PackedHeads&) { return false; }
bool gated_sum_gpu(const GatedSumInput&, Tensor&) { return false; }
#endif

}  // namespace sigma
