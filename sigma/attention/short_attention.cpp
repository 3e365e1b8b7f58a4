#include "sigma/attention/short_attention.h"

#include <ATen/Parallel.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cmath>

#include "sigma/attention/kernels/short_attention.h"

namespace sigma {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kMaxTokens = 128;

class Short : public torch::autograd::Function<Short> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& qkv_in, int64_t num_heads) {
    const Tensor qkv = qkv_in.contiguous();
    const int64_t B = qkv.size(0);
    const int64_t N = qkv.size(1);
    const Tensor out = torch::empty({B, N, qkv.size(2) / 3}, qkv.options());
    const Tensor P = torch::empty({B, num_heads, N, N}, qkv.options());
    const kernels::ShortAttention k = arguments(qkv, P, num_heads);
    at::parallel_for(0, B, 1, [&](int64_t first, int64_t last) {
      kernels::short_attention_forward(k, out.data_ptr<float>(), first, last);
    });
    ctx->save_for_backward({qkv, P});
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &qkv = saved[0], &P = saved[1];
    const Tensor grad_out = grads[0].contiguous();
    const Tensor grad_qkv = torch::empty_like(qkv);
    const kernels::ShortAttention k = arguments(qkv, P, P.size(1));
    at::parallel_for(0, qkv.size(0), 1, [&](int64_t first, int64_t last) {
      kernels::short_attention_backward(k, grad_out.data_ptr<float>(), grad_qkv.data_ptr<float>(),
                                        first, last);
    });
    return {grad_qkv, Tensor()};
  }

 private:
  static kernels::ShortAttention arguments(const Tensor& qkv, const Tensor& P, int64_t num_heads) {
    const int64_t D = qkv.size(2) / 3 / num_heads;
    return {.N = qkv.size(1),
            .H = num_heads,
            .D = D,
            .scale = 1 / std::sqrt(static_cast<float>(D)),
            .qkv = qkv.data_ptr<float>(),
            .probabilities = P.data_ptr<float>()};
  }
};

}  // namespace

bool takes_short_attention(const Tensor& qkv) {
  return qkv.is_cpu() && qkv.scalar_type() == torch::kFloat && qkv.size(1) <= kMaxTokens;
}

Tensor short_attention(const Tensor& qkv, int64_t num_heads) {
  return Short::apply(qkv, num_heads);
}

}  // namespace sigma
