// Random inputs and errors for tests.
#pragma once

#include <torch/types.h>

#include <vector>

#include "sigma/base/random.h"

namespace sigma {

/// Standard normal numbers, others for every `site`; drawn in float64, then rounded.
inline torch::Tensor normal(torch::IntArrayRef shape, uint32_t site,
                            torch::ScalarType dtype = torch::kDouble) {
  torch::Tensor out = torch::empty(shape, torch::kDouble);
  fill_normal_keyed(out, 1, random_stream(Purpose::kEval, site), 0);
  return out.to(dtype);
}

/// max |a - b|; 0 for empty tensors.
inline double error(const torch::Tensor& a, const torch::Tensor& b) {
  const torch::Tensor difference = a.to(torch::kDouble) - b.to(torch::kDouble);
  return difference.numel() == 0 ? 0 : difference.abs().max().item<double>();
}

/// The elements of a tensor of whole numbers.
inline std::vector<int64_t> list(const torch::Tensor& t) {
  const torch::Tensor x = t.to(torch::kInt64).contiguous();
  return {x.data_ptr<int64_t>(), x.data_ptr<int64_t>() + x.numel()};
}

}  // namespace sigma
