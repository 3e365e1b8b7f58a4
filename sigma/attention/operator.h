// What the operators of attention share.
#pragma once

#include <ATen/Parallel.h>
#include <torch/types.h>

#include <atomic>
#include <cstdint>

#include "sigma/attention/kernels/small_gemm.h"

namespace sigma {

struct AttentionOutput {
  torch::Tensor out;  // [B,H,Nq,Dv]
  torch::Tensor lse;  // [B,H,Nq] natural log; has no gradient
};

/// x [B,G,N,D] with zeros in the rows that key_valid [B,N] (or nothing) leaves out: they may hold
/// NaN, which 0 times would keep.
inline torch::Tensor without_invalid(const torch::Tensor& x, const torch::Tensor& key_valid) {
  if (!key_valid.defined()) return x;
  return x.masked_fill(key_valid.logical_not().unsqueeze(1).unsqueeze(-1), 0);
}

/// Zero columns up to the kernels' multiple change no dot product.
inline torch::Tensor pad_columns(const torch::Tensor& x) {
  const int64_t missing = kernels::padded(x.size(3)) - x.size(3);
  return missing == 0 ? x : torch::constant_pad_nd(x, {0, missing});
}

/// Tasks are handed out one by one: their lengths differ. Each writes its own rows.
template <typename F>
void run_tasks(int64_t tasks, F task) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < tasks; i = next++) task(i);
  });
}

}  // namespace sigma
