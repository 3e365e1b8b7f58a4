// Block-sparse attention in 16 bits on a GPU: inputs, and how exact results must be.
#pragma once

#include <torch/types.h>

#include "sigma/attention/block_sparse.h"
#include "tests/attention/block_sparse_cases.h"

namespace sigma {

inline BlockSparseInput on_gpu(BlockSparseInput in, torch::ScalarType dtype) {
  for (torch::Tensor* x : {&in.q, &in.k, &in.v}) *x = x->to(torch::kCUDA, dtype);
  in.index = in.index.to(torch::kCUDA);
  if (in.key_valid.defined()) in.key_valid = in.key_valid.to(torch::kCUDA);
  return in;
}

// What a result may differ by, an element (attention.md 11): P, dS, out and delta's out are rounded
// once to the type (u); the rest is float32. P comes from the definition, on values 1.
inline BlockSparseResult block_sparse_bounds(const BlockSparseInput& in,
                                             const BlockSparseResult& exact,
                                             const torch::Tensor& grad_out,
                                             torch::ScalarType dtype) {
  using torch::Tensor;
  const double u = dtype == torch::kHalf ? 0x1p-11 : 0x1p-8;
  const double u32 = 0x1p-24;
  const int64_t M = in.q.size(1) / in.k.size(1), Nk = in.k.size(2);
  BlockSparseInput one = in;
  one.v = torch::eye(Nk, torch::kDouble).expand({in.k.size(0), in.k.size(1), Nk, Nk});
  const Tensor P = block_sparse_attention_reference(one).out;
  const auto heads = [&](const Tensor& x) { return x.abs().repeat_interleave(M, 1); };
  const auto group = [&](const Tensor& x) { return x.unflatten(1, {-1, M}).sum(2); };
  const Tensor q = in.q.abs(), k = heads(without_invalid(in.k, in.key_valid)),
               v = heads(without_invalid(in.v, in.key_valid)), g = grad_out.abs();
  const double scale = score_scale(in.scale, in.q);
  const auto t = [](const Tensor& x) { return x.transpose(-1, -2); };
  const double score = (torch::matmul(q, t(k)) * scale).max().item<double>();
  const double c = u + in.q.size(3) * u32 * score + static_cast<double>(Nk) * u32;
  const Tensor out = torch::matmul(P, v);
  const Tensor dS = P * (torch::matmul(g, t(v)) + (g * out).sum(-1, /*keepdim=*/true)) * scale;
  const auto both = [&](const Tensor& value, const Tensor& terms) {
    return 4 * (u * value.abs() + c * terms) + 1e-7;  // float16 ends near 6e-8
  };
  return {.out = both(exact.out, out),
          .lse = 4 * u32 * (in.q.size(3) * score + static_cast<double>(Nk) + exact.lse.abs()),
          .grad_q = both(exact.grad_q, torch::matmul(dS, k)),
          .grad_k = both(exact.grad_k, group(torch::matmul(t(dS), q))),
          .grad_v = both(exact.grad_v, group(torch::matmul(t(P), g)))};
}

}  // namespace sigma
