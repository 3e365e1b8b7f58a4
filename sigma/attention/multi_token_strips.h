// Multi-token attention a strip of queries at a time: the definition in O(N) memory, for what has
// no faster path on a GPU (causal sequences, missing keys, kernels of any shape). The backward
// makes the strips' maps again.
#pragma once

#include "sigma/attention/multi_token_op.h"

namespace sigma {

/// `input` is checked. Strips of `rows` queries; 0: as many as some memory holds.
AttentionOutput multi_token_strips(const MultiTokenInput& input, int64_t rows = 0);

}  // namespace sigma
