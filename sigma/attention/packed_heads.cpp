#include "sigma/attention/packed_heads.h"

#include <torch/types.h>

#include "sigma/nn/linear.h"

namespace sigma {

using torch::Tensor;

int64_t PackInput::width() const {
  int64_t heads = 0;
  for (const HeadsPart& part : parts) heads += part.heads;
  return heads * head_dim;
}

PackedHeads pack_heads_reference(const PackInput& in) {
  const Tensor packed = in.rows.slice(-1, 0, in.width())
                            .index_select(1, in.order)
                            .unflatten(-1, {-1, in.head_dim})
                            .transpose(1, 2);
  RopeTable table;
  if (in.rope)
    table = {in.rope->table().cos.index_select(-2, in.order),
             in.rope->table().sin.index_select(-2, in.order)};
  PackedHeads out{.rest = in.rows.slice(-1, in.width())};
  int64_t first = 0;
  for (const HeadsPart& part : in.parts) {
    const Tensor plain = packed.narrow(1, first, part.heads);
    Tensor turned;
    for (const bool turns : part.turned) {
      if (turns && in.rope && !turned.defined()) turned = in.rope->rotate(plain, table);
      out.heads.push_back(turns && in.rope ? turned : plain);
    }
    first += part.heads;
  }
  return out;
}

PackedHeads pack_heads(const PackInput& in) {
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
