// What the tests of bottlenecks share.
#pragma once

#include <torch/types.h>

#include "sigma/tokenizer/bottleneck.h"

namespace sigma {

inline Context pass(uint64_t step, int64_t first, int64_t samples) {
  return {.training = true,
          .record = true,
          .rng = {.seed = 3, .step = step},
          .samples = torch::arange(first, first + samples, torch::kInt64)};
}

inline std::shared_ptr<Bottleneck> make(const BottleneckConfig& config) {
  auto bottleneck = make_bottleneck(config);
  initialize(*bottleneck, 5);
  return bottleneck;
}

}  // namespace sigma
