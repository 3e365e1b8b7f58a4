#include "sigma/attention/packed_heads.h"

#include <torch/types.h>

#include <algorithm>

#include "sigma/nn/linear.h"

namespace sigma {

using torch::Tensor;

size_t first_like(const PackInput& in, size_t i) {
  const auto same = [&](const HeadsUse& a) {
    const HeadsUse& b = in.uses[i];
    return a.first == b.first && a.count == b.count && a.turned == b.turned;
  };
  return static_cast<size_t>(std::find_if(in.uses.begin(), in.uses.end(), same) - in.uses.begin());
}

PackedHeads pack_heads_reference(const PackInput& in) {
  const int64_t width = in.heads * in.head_dim;
  const Tensor packed = in.rows.slice(-1, 0, width)
                            .index_select(1, in.order)
                            .unflatten(-1, {in.heads, in.head_dim})
                            .transpose(1, 2);
  RopeTable table;
  if (in.rope)
    table = {in.rope->table().cos.index_select(-2, in.order),
             in.rope->table().sin.index_select(-2, in.order)};
  PackedHeads out{.rest = in.rows.slice(-1, width)};
  for (size_t i = 0; i < in.uses.size(); ++i) {
    if (const size_t like = first_like(in, i); like < i) {
      out.uses.push_back(out.uses[like]);
      continue;
    }
    const HeadsUse& use = in.uses[i];
    const Tensor heads = packed.narrow(1, use.first, use.count);
    out.uses.push_back(use.turned ? in.rope->rotate(heads, table) : heads);
  }
  return out;
}

PackedHeads pack_heads(PackInput in) {
  if (!in.rope)
    for (HeadsUse& use : in.uses) use.turned = false;
  PackedHeads out;
  return pack_heads_gpu(in, out) ? out : pack_heads_reference(in);
}

Tensor gated_sum_reference(const GatedSumInput& in) {
  const auto branches = static_cast<int64_t>(in.branches.size());
  const int64_t H = in.branches[0].size(1), Ng = in.branches[0].size(2);
  const Tensor gates =
      torch::sigmoid(at_least_float(in.gates.index_select(1, in.order.slice(0, 0, Ng))))
          .to(in.gates.scalar_type())
          .unflatten(-1, {H, branches})
          .transpose(1, 2);
  Tensor out;
  for (int64_t i = 0; i < branches; ++i) {
    const Tensor part = in.branches[static_cast<size_t>(i)] * gates.slice(3, i, i + 1);
    out = out.defined() ? out + part : part;
  }
  if (in.beside.defined()) out = torch::cat({out, in.beside}, 2);
  return out.transpose(1, 2).flatten(2).index_select(1, in.inverse);
}

Tensor gated_sum(const GatedSumInput& in) {
  Tensor out;
  return gated_sum_gpu(in, out) ? out : gated_sum_reference(in);
}

}  // namespace sigma
