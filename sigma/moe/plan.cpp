#include "sigma/moe/plan.h"

#include <torch/types.h>

#include "sigma/base/error.h"

namespace sigma {
namespace {

using torch::Tensor;

// Where each of 0 .. n begins in sorted keys.
Tensor starts(const Tensor& sorted, int64_t n) {
  return torch::searchsorted(sorted, torch::arange(n + 1, sorted.options())).to(torch::kInt);
}

}  // namespace

Plan make_plan(const Tensor& pair_token, const Tensor& pair_expert, int64_t tokens,
               int64_t experts) {
  const int64_t P = pair_expert.size(0);
  SIGMA_CHECK(kUsage, P < (int64_t{1} << 31) && (experts + 1) * tokens < (int64_t{1} << 31),
              "mixture of experts: expected fewer than 2^31 pairs, got {} tokens and {} experts; "
              "split the batch",
              tokens, experts);
  if (pair_expert.is_cpu() && P > 0) {
    const auto low = pair_expert.min().item<int64_t>(), high = pair_expert.max().item<int64_t>();
    SIGMA_CHECK(kUsage, low >= -1 && high < experts,
                "mixture of experts: expected experts in [-1, {}), got {}", experts,
                low < -1 ? low : high);
    const Tensor used = pair_token.masked_fill(pair_expert < 0, 0);
    const auto first = used.min().item<int64_t>(), last = used.max().item<int64_t>();
    SIGMA_CHECK(kUsage, first >= 0 && last < tokens,
                "mixture of experts: expected tokens in [0, {}), got {}", tokens,
                first < 0 ? first : last);
  }
  const Tensor dropped = pair_expert < 0;
  const Tensor expert = pair_expert.masked_fill(dropped, experts);
  // Keys of 32 bits: half a radix sort's work.
  const Tensor by_expert = (expert * tokens + pair_token.masked_fill(dropped, 0))
                               .to(torch::kInt)
                               .argsort(/*stable=*/true, 0, false);
  const Tensor row_expert = expert.index_select(0, by_expert);
  const Tensor unused = row_expert == experts;
  Plan plan;
  plan.offsets = starts(row_expert, experts);
  const Tensor token = pair_token.index_select(0, by_expert);
  plan.row_token = token.masked_fill(unused, -1).to(torch::kInt);
  plan.row_pair = by_expert.masked_fill(unused, -1).to(torch::kInt);

  const Tensor key = token.masked_fill(unused, tokens).to(torch::kInt);
  const Tensor by_token = key.argsort(/*stable=*/true, 0, false);
  const Tensor sorted = key.index_select(0, by_token);
  plan.token_offsets = starts(sorted, tokens);
  plan.token_rows = by_token.masked_fill(sorted == tokens, -1).to(torch::kInt);
  return plan;
}

}  // namespace sigma
