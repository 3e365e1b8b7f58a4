#include "sigma/attention/fused_attention.h"

#include <torch/types.h>

#include <algorithm>
#include <vector>

namespace sigma {
namespace {

constexpr int64_t kMostHeads = 65535;

}  // namespace

torch::Tensor fused_attention(const torch::Tensor& q, const torch::Tensor& k,
                              const torch::Tensor& v, const torch::Tensor& mask, bool causal,
                              std::optional<double> scale) {
  const auto attend = [&](const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v) {
    const auto mask_or_none = mask.defined() ? std::optional(mask) : std::nullopt;
    return at::scaled_dot_product_attention(q, k, v, mask_or_none, /*dropout_p=*/0.0, causal,
                                            scale);
  };
  const int64_t B = q.size(0), H = std::max<int64_t>(q.size(1), 1);
  const int64_t piece = std::max<int64_t>(kMostHeads / H, 1);
  if (!q.is_cuda() || B <= piece) return attend(q, k, v);
  std::vector<torch::Tensor> out;
  for (int64_t first = 0; first < B; first += piece) {
    const int64_t last = std::min(first + piece, B);
    out.push_back(
        attend(q.slice(0, first, last), k.slice(0, first, last), v.slice(0, first, last)));
  }
  return torch::cat(out);
}

}  // namespace sigma
