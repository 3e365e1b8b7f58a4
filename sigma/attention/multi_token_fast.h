// Multi-token attention by the CPU's kernels (kernels/multi_token.h): tokens to places, and the
// gradients of the parts added up.
#pragma once

#include "sigma/attention/multi_token_op.h"

namespace sigma {

/// float32 on the CPU.
bool takes_multi_token_kernels(const MultiTokenInput& input);
/// `input` is checked, and its invalid keys are 0.
AttentionOutput multi_token_kernels(const MultiTokenInput& input);

}  // namespace sigma
