#include "sigma/attention/multi_token_gpu.h"

#include <torch/autograd.h>
#include <torch/types.h>

#include <algorithm>

#include "sigma/attention/multi_token_convolution.h"
#include "sigma/base/error.h"
#ifdef SIGMA_CUDA
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "sigma/attention/kernels/multi_token_hopper.h"
#endif

namespace sigma {

using torch::Tensor;

#ifdef SIGMA_CUDA
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Of one kind of score maps at a time: this, or of long sequences so much a token.
constexpr int64_t kMapBytes = int64_t{256} << 20;
constexpr int64_t kMapBytesToken = int64_t{16} << 10;
constexpr int64_t kMostMixed = 4;  // heads: each makes the scores of all again

void check(cudaError_t status) {
  SIGMA_CHECK(kDevice, status == cudaSuccess, "multi_token_attention: {}",
              cudaGetErrorString(status));
}

Tensor floats(torch::IntArrayRef sizes, const Tensor& like) {
  return torch::empty(sizes, like.options().dtype(torch::kFloat));
}

// What the backward needs beside tensors.
struct Saved : torch::CustomClassHolder {
  ScoreMixing before, after;  // steps
  TokenLayout layout;
  double scale = 1;
};

char* at(const Tensor& x, int64_t element) {
  return static_cast<char*>(x.data_ptr()) + element * x.element_size();
}

// q, k, v [B,H,N,64], the kernels [H,a,b] and [H,a',b'] with a' even.
class Hopper : public torch::autograd::Function<Hopper> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& k,
                               const Tensor& v, const Tensor& theta, const Tensor& phi,
                               const c10::intrusive_ptr<Saved>& saved) {
    const c10::cuda::CUDAGuard guard(q.device());
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
    variable_list t = {q, k, v, theta, phi};
    for (Tensor& x : t) x = x.contiguous();
    const int64_t B = q.size(0), H = q.size(1), N = q.size(2);
    const Tensor khat = torch::empty({B, H, theta.size(1), N, 64}, q.options());
    const Tensor vhat = torch::empty({B, H, phi.size(1), N, 64}, q.options());
    const Tensor y = torch::empty_like(vhat), out = torch::empty_like(t[0]);
    const Tensor lse = floats({B, H, N}, q);
    widen(t, *saved, 0, B * H, khat, vhat, stream);
    kernels::WideAttention a = arguments(t, *saved, B * H);
    a.q = t[0].data_ptr();
    a.khat = khat.data_ptr();
    a.vhat = vhat.data_ptr();
    a.y = y.data_ptr();
    a.lse = lse.data_ptr<float>();
    check(kernels::wide_attention(a, stream));
    kernels::WideShift shift = outputs(t, *saved, y);
    shift.out = out.data_ptr();
    check(kernels::shift_add(shift, stream));
    t.insert(t.end(), {y, lse});
    ctx->save_for_backward(t);
    ctx->saved_data["saved"] = c10::IValue::make_capsule(saved);
    ctx->mark_non_differentiable({lse});
    return {out, lse};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list t = ctx->get_saved_variables();
    const c10::cuda::CUDAGuard guard(t[0].device());
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
    const auto capsule = ctx->saved_data["saved"].toCapsule();
    const Saved& saved = static_cast<const Saved&>(*capsule);
    const Tensor &q = t[0], &k = t[1], &v = t[2], &y = t[5], &lse = t[6];
    const Tensor g = grads[0].contiguous(), delta = torch::empty_like(lse);
    kernels::WideShift shift = outputs(t, saved, y);
    shift.x = g.data_ptr();
    shift.dot = delta.data_ptr<float>();
    check(kernels::shift_dot(shift, stream));

    // Some heads at a time, and of long sequences some keys.
    const int64_t heads = q.size(0) * q.size(1), N = q.size(2);
    const int64_t room = std::max(kMapBytes, kMapBytesToken * N) / 2;
    const int64_t whole = room / (N * kernels::map_columns(N));
    const int64_t run = std::min(std::max(whole, int64_t{8}), heads);
    const int64_t strip = std::min(N, std::max(int64_t{128}, room / (N * run) / 128 * 128));
    const auto buffer = [&](int64_t a, int64_t rows) {
      return torch::empty({run, a, N, rows}, q.options());
    };
    const Tensor khat = buffer(t[3].size(1), 64), vhat = buffer(t[4].size(1), 64);
    const Tensor grad_khat = torch::empty_like(khat), grad_vhat = torch::empty_like(vhat);
    const Tensor prob = buffer(1, kernels::map_columns(strip)), grad = torch::empty_like(prob);
    const Tensor sums = strip < N ? floats({kernels::query_sums(run, N)}, q) : Tensor();
    const Tensor grad_q = torch::empty_like(q), grad_k = torch::empty_like(k);
    const Tensor grad_v = torch::empty_like(v);
    const Tensor grad_theta = torch::empty_like(t[3]), grad_phi = torch::empty_like(t[4]);
    kernels::WideConvolution keys = convolution(k, t[3], saved.before, saved.layout, 1);
    kernels::WideConvolution values = convolution(v, t[4], saved.after, saved.layout, -1);
    const Tensor key_parts = floats({kernels::convolve_scratch(keys)}, q);
    const Tensor value_parts = floats({kernels::convolve_scratch(values)}, q);
    for (int64_t first = 0; first < heads; first += run) {
      const int64_t some = std::min(run, heads - first), at_head = first * N * 64;
      widen(t, saved, first, some, khat, vhat, stream);
      kernels::WideAttentionGrad a;
      static_cast<kernels::WideAttention&>(a) = arguments(t, saved, some);
      a.q = at(q, at_head);
      a.khat = khat.data_ptr();
      a.vhat = vhat.data_ptr();
      a.lse = lse.data_ptr<float>() + first * N;
      a.grad_out = at(g, at_head);
      a.delta = delta.data_ptr<float>() + first * N;
      a.prob = prob.data_ptr();
      a.grad = grad.data_ptr();
      a.gq = at(grad_q, at_head);
      a.gkhat = grad_khat.data_ptr();
      a.gvhat = grad_vhat.data_ptr();
      if (sums.defined()) a.gq_sum = sums.data_ptr<float>();
      for (a.first_key = 0; a.first_key < N; a.first_key += strip) {
        a.keys = std::min(strip, N - a.first_key);
        check(kernels::wide_attention_maps(a, stream));
        check(kernels::wide_attention_keys(a, stream));
        check(kernels::wide_attention_queries(a, stream));
      }
      const auto back = [&](kernels::WideConvolution c, const Tensor& x, const Tensor& wide,
                            const Tensor& grad_x, const Tensor& parts) {
        c.first = first;
        c.heads = some;
        c.x = at(x, at_head);
        c.gwide = wide.data_ptr();
        c.gx = at(grad_x, at_head);
        c.scratch = parts.data_ptr<float>();
        check(kernels::convolve_back(c, stream));
      };
      back(keys, k, grad_khat, grad_k, key_parts);
      back(values, v, grad_vhat, grad_v, value_parts);
    }
    keys.scratch = key_parts.data_ptr<float>();
    values.scratch = value_parts.data_ptr<float>();
    check(kernels::taps_gradient(keys, grad_theta.data_ptr<float>(), stream));
    check(kernels::taps_gradient(values, grad_phi.data_ptr<float>(), stream));
    return {grad_q, grad_k, grad_v, grad_theta, grad_phi, Tensor()};
  }

 private:
  // The wide keys and values of a run of heads.
  static void widen(const variable_list& t, const Saved& saved, int64_t first, int64_t heads,
                    const Tensor& khat, const Tensor& vhat, cudaStream_t stream) {
    const auto one = [&](kernels::WideConvolution c, const Tensor& x, const Tensor& wide) {
      c.first = first;
      c.heads = heads;
      c.x = at(x, first * x.size(2) * 64);
      c.wide = wide.data_ptr();
      check(kernels::convolve(c, stream));
    };
    one(convolution(t[1], t[3], saved.before, saved.layout, 1), t[1], khat);
    one(convolution(t[2], t[4], saved.after, saved.layout, -1), t[2], vhat);
  }

  static kernels::WideAttention arguments(const variable_list& t, const Saved& saved,
                                          int64_t heads) {
    return {.heads = heads,
            .N = t[0].size(2),
            .half = t[0].scalar_type() == torch::kHalf,
            .before_first = static_cast<int>(saved.before.queries[0][2]),
            .before = static_cast<int>(t[3].size(1)),
            .after_first = static_cast<int>(saved.after.queries[0][2]),
            .after = static_cast<int>(t[4].size(1)),
            .scale = static_cast<float>(saved.scale)};
  }

  static kernels::WideShift outputs(const variable_list& t, const Saved& saved, const Tensor& y) {
    kernels::WideShift shift{.heads = t[0].size(0) * t[0].size(1),
                             .D = 64,
                             .grid = kernel_grid(saved.layout),
                             .element = kernel_element(t[0]),
                             .queries = kernel_steps(saved.after.queries),
                             .wide = y.data_ptr()};
    // The step that makes their number even.
    const int R = shift.queries.count;
    if (R < y.size(2)) {
      shift.queries.step[R] = shift.queries.step[R - 1];
      ++shift.queries.step[R].x;
      ++shift.queries.count;
    }
    return shift;
  }
};

// Neighbouring steps along a sequence.
bool neighbours(const std::vector<GridStep>& steps) {
  if (steps.empty() || static_cast<int>(steps.size()) > kernels::kMaxSteps1D) return false;
  for (size_t i = 0; i < steps.size(); ++i)
    if (steps[i] != GridStep{0, 0, steps[0][2] + static_cast<int64_t>(i)}) return false;
  return true;
}

// One step and a kernel of 1 where there is no convolution.
ScoreMixing with_kernel(const ScoreMixing& m, const Tensor& like) {
  ScoreMixing out = m;
  if (m.kernel.defined()) {
    out.kernel = m.kernel.to(torch::kFloat);
    return out;
  }
  out.queries = out.keys = {GridStep{}};
  out.kernel = torch::ones({like.size(1), 1, 1}, like.options().dtype(torch::kFloat));
  return out;
}

// Heads that mix afterwards: each head's scores on the values of each head of its group.
AttentionOutput mixed_after(const MultiTokenInput& in) {
  const int64_t groups = in.after.mix.size(0), c = in.after.mix.size(1);
  // [B, group, from, values of, N, D], as heads.
  const auto scores = [&](const Tensor& x, int64_t axis) {
    std::vector<int64_t> sizes(static_cast<size_t>(x.dim()) + 2, -1);
    sizes[static_cast<size_t>(axis) + 2] = c;
    return x.unflatten(axis, {groups, c, 1}).expand(sizes).flatten(axis, axis + 2);
  };
  MultiTokenInput wide = in;
  wide.after.mix = Tensor();
  wide.q = scores(in.q, 1);
  wide.k = scores(in.k, 1);
  wide.v = in.v.unflatten(1, {groups, 1, c}).expand({-1, -1, c, -1, -1, -1}).flatten(1, 3);
  for (ScoreMixing* m : {&wide.before, &wide.after})
    if (m->kernel.defined()) m->kernel = scores(m->kernel, 0);
  const AttentionOutput all = multi_token_gpu(wide);
  const Tensor mix = in.after.mix.to(all.out.scalar_type());
  return {.out = torch::einsum("gts,bgstnd->bgtnd", {mix, all.out.unflatten(1, {groups, c, c})})
                     .flatten(1, 2),
          .lse = all.lse.unflatten(1, {groups * c, c}).select(2, 0)};
}

}  // namespace

std::string multi_token_gpu_refuses(const MultiTokenInput& in) {
  const auto side = [](const ScoreMixing& m) {
    return !m.kernel.defined() || (neighbours(m.queries) && kernels_take(m));
  };
  const int64_t mixed = in.after.mix.defined() ? in.after.mix.size(1) : 1;
  const auto dtype = in.q.scalar_type();
  if ((dtype != torch::kHalf && dtype != torch::kBFloat16) || in.k.scalar_type() != dtype ||
      in.v.scalar_type() != dtype)
    return "expected bfloat16 or float16, got " + std::string(torch::toString(dtype));
  if (in.q.size(3) != 64 || in.v.size(3) != 64)
    return "expected heads of 64 channels, got " + std::to_string(in.q.size(3)) + " and " +
           std::to_string(in.v.size(3));
  if (in.layout.pattern != Pattern::kFull || in.key_valid.defined())
    return "expected queries that see all keys";
  if (in.layout.grid.frames * in.layout.grid.height != 1 || in.layout.before + in.layout.after != 0)
    return "expected a sequence alone";
  if (in.before.mix.defined() || mixed > kMostMixed)
    return "expected heads that mix after the softmax alone, at most " + std::to_string(kMostMixed);
  if (!side(in.before) || !side(in.after))
    return "expected at most " + std::to_string(kernels::kMaxSteps1D) + " neighbouring query steps";
  if (in.q.numel() == 0 || in.q.size(0) * in.q.size(1) * mixed >= 65536)
    return "expected 1 to 65535 heads of all images, got " +
           std::to_string(in.q.size(0) * in.q.size(1) * mixed);
  return {};
}

AttentionOutput multi_token_gpu(const MultiTokenInput& in) {
  if (in.after.mix.defined()) return mixed_after(in);
  auto saved = c10::make_intrusive<Saved>();
  saved->before = with_kernel(in.before, in.q);
  saved->after = with_kernel(in.after, in.q);
  saved->layout = in.layout;
  saved->scale = score_scale(in.scale, in.q);
  const Tensor theta = std::move(saved->before.kernel), phi = std::move(saved->after.kernel);
  const variable_list out = Hopper::apply(
      in.q, in.k, in.v, theta, torch::constant_pad_nd(phi, {0, 0, 0, phi.size(1) % 2}), saved);
  return {.out = out[0], .lse = out[1]};
}
#else
std::string multi_token_gpu_refuses(const MultiTokenInput&) {
  return "this build has no CUDA kernels";
}
AttentionOutput multi_token_gpu(const MultiTokenInput&) {
  fail(ErrorKind::kDevice, "multi_token_attention: this build has no CUDA kernels");
}
#endif

}  // namespace sigma
