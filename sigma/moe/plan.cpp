#include "sigma/moe/plan.h"

#include <torch/types.h>

#include <numeric>
#include <vector>

#include "sigma/base/error.h"

namespace sigma {
namespace {

using torch::Tensor;

// As make_plan, by counting: a pass in the order of tokens, one by expert, one back to tokens.
Plan plan_on_cpu(const Tensor& pair_token, const Tensor& pair_expert, int64_t tokens,
                 int64_t experts) {
  const int64_t P = pair_expert.size(0);
  const auto options = torch::TensorOptions().dtype(torch::kInt);
  const Plan plan{torch::zeros({experts + 1}, options), torch::full({P}, -1, options),
                  torch::full({P}, -1, options), torch::zeros({tokens + 1}, options),
                  torch::full({P}, -1, options)};
  const Tensor of_token = pair_token.contiguous(), of_expert = pair_expert.contiguous();
  const int64_t* token = of_token.data_ptr<int64_t>();
  const int64_t* expert = of_expert.data_ptr<int64_t>();
  int32_t* offsets = plan.offsets.data_ptr<int32_t>();
  int32_t* token_offsets = plan.token_offsets.data_ptr<int32_t>();
  for (int64_t p = 0; p < P; ++p) {
    SIGMA_CHECK(kUsage, expert[p] >= -1 && expert[p] < experts,
                "mixture of experts: expected experts in [-1, {}), got {}", experts, expert[p]);
    if (expert[p] < 0) continue;
    SIGMA_CHECK(kUsage, token[p] >= 0 && token[p] < tokens,
                "mixture of experts: expected tokens in [0, {}), got {}", tokens, token[p]);
    ++offsets[expert[p] + 1];
    ++token_offsets[token[p] + 1];
  }
  std::partial_sum(offsets, offsets + experts + 1, offsets);
  std::partial_sum(token_offsets, token_offsets + tokens + 1, token_offsets);

  std::vector<int32_t> next(token_offsets, token_offsets + tokens);
  std::vector<int32_t> by_token(static_cast<size_t>(token_offsets[tokens]));
  for (int64_t p = 0; p < P; ++p)
    if (expert[p] >= 0) by_token[next[token[p]]++] = static_cast<int32_t>(p);
  int32_t* row_token = plan.row_token.data_ptr<int32_t>();
  int32_t* row_pair = plan.row_pair.data_ptr<int32_t>();
  next.assign(offsets, offsets + experts);
  for (const int32_t p : by_token) {
    const int32_t row = next[expert[p]]++;
    row_token[row] = static_cast<int32_t>(token[p]);
    row_pair[row] = p;
  }
  int32_t* token_rows = plan.token_rows.data_ptr<int32_t>();
  next.assign(token_offsets, token_offsets + tokens);
  for (int32_t row = 0; row < offsets[experts]; ++row) token_rows[next[row_token[row]]++] = row;
  return plan;
}

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
  if (pair_expert.is_cpu()) return plan_on_cpu(pair_token, pair_expert, tokens, experts);
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
