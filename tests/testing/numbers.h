// Random inputs and errors for tests.
#pragma once

#include <torch/types.h>

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

}  // namespace sigma
