#include "sigma/attention/multi_token_wide.h"

#include <torch/types.h>

#include "sigma/attention/fused_attention.h"
#include "sigma/attention/multi_token_convolution.h"

namespace sigma {
namespace {

using torch::Tensor;

// x [B,H,N,D] moved by `step`: row i is x at i - step, 0 where there is none.
Tensor moved(const Tensor& x, const TokenLayout& layout, const GridStep& step) {
  if (step == GridStep{}) return x;
  const Tensor rows = stepped_back(layout, step).to(x.device());
  return torch::constant_pad_nd(x, {0, 0, 0, 1}).index_select(2, rows);
}

// For each query step of a kernel [H,a,b], sum_b kernel[a,b] x moved by +-b: [B,H,N,a,D].
Tensor convolved(const Tensor& x, const ScoreMixing& m, const TokenLayout& layout, int sign) {
  if (takes_wide_convolution(x, m)) return wide_convolution(x, m, layout, sign);
  const auto wide = x.scalar_type() == torch::kDouble ? torch::kDouble : torch::kFloat;
  Tensor sum;
  for (size_t b = 0; b < m.keys.size(); ++b) {
    const auto& [f, y, c] = m.keys[b];
    const Tensor row = moved(x, layout, {sign * f, sign * y, sign * c}).to(wide).unsqueeze(3);
    const Tensor weight =
        m.kernel.select(2, static_cast<int64_t>(b)).to(wide).unsqueeze(1).unsqueeze(-1);
    sum = sum.defined() ? sum + weight * row : weight * row;  // [H,1,a,1] [B,H,N,1,D]
  }
  return sum.to(x.scalar_type());
}

}  // namespace

bool takes_multi_token_wide(const MultiTokenInput& in) {
  return in.layout.pattern == Pattern::kFull && !in.key_valid.defined() && in.q.numel() > 0;
}

Tensor multi_token_wide(const MultiTokenInput& in) {
  const double scale = score_scale(in.scale, in.q);
  Tensor q = in.q.unsqueeze(3);  // [B,H,N,a,D]
  Tensor k = in.k.unsqueeze(3);
  if (in.before.kernel.defined()) {
    std::vector<Tensor> steps;
    for (const GridStep& a : in.before.queries) steps.push_back(moved(in.q, in.layout, a));
    q = torch::stack(steps, 3);
    k = convolved(in.k, in.before, in.layout, 1);
  }
  if (in.before.mix.defined()) {
    const int64_t groups = in.before.mix.size(0), c = in.before.mix.size(1);
    const Tensor w = in.before.mix.to(q.scalar_type());
    q = torch::einsum("gts,bgsnad->bgtnsad", {w, q.unflatten(1, {groups, c})}).flatten(1, 2);
    k = k.unflatten(1, {groups, 1, c}).expand({-1, -1, c, -1, -1, -1, -1}).transpose(3, 4);
    k = k.flatten(1, 2);
  }

  // Values of the group's heads side by side: [B,H,N,c,a,Dv].
  const int64_t c = in.after.mix.defined() ? in.after.mix.size(1) : 1;
  const int64_t H = in.v.size(1);
  Tensor v = in.v.unflatten(1, {H / c, 1, c}).expand({-1, -1, c, -1, -1, -1}).flatten(1, 2);
  std::vector<Tensor> values;
  for (int64_t to = 0; to < c; ++to) {
    const Tensor of = v.select(2, to);
    values.push_back(in.after.kernel.defined() ? convolved(of, in.after, in.layout, -1)
                                               : of.unsqueeze(3));
  }
  v = torch::stack(values, 3);

  const Tensor y = fused_attention(q.flatten(3), k.flatten(3), v.flatten(3), /*mask=*/{},
                                   /*causal=*/false, scale)
                       .view_as(v);
  Tensor out;  // [B,H,N,c,Dv]: what head `from` gives each head of its group
  for (int64_t a = 0; a < v.size(4); ++a) {
    const Tensor part = y.select(4, a);
    const Tensor shifted =
        in.after.kernel.defined()
            ? moved(part.flatten(3), in.layout, in.after.queries[static_cast<size_t>(a)])
                  .view_as(part)
            : part;
    out = out.defined() ? out + shifted : shifted;
  }
  if (!in.after.mix.defined()) return out.squeeze(3);
  return torch::einsum("gts,bgsntd->bgtnd",
                       {in.after.mix.to(out.scalar_type()), out.unflatten(1, {H / c, c})})
      .flatten(1, 2);
}

}  // namespace sigma
