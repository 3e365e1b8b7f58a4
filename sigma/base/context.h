// What travels with one forward pass, from the trainer (or sampler, or test) to every block. There
// is no other ambient state.
#pragma once

#include <torch/types.h>

#include "sigma/base/random.h"

namespace sigma {

struct Context {
  bool training = false;
  /// Whether this pass may update statistics (balance counters, code usage): false in evaluation,
  /// under no_grad targets and in recomputation.
  bool record = false;
  /// Compute dtype of matrix products and attention. Never lower than the input for a module moved
  /// to float64.
  torch::ScalarType dtype = torch::kFloat;
  Rng rng;
  /// Indices [B] in the global batch (sampling: image numbers), int64 on the CPU: the keys of every
  /// random draw.
  torch::Tensor samples;
  /// Share of the training that is done, in [0, 1]: for objectives that change on the way. 1
  /// outside of training.
  double progress = 1;
};

}  // namespace sigma
