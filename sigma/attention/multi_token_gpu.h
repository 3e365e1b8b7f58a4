// Multi-token attention on NVIDIA GPUs by kernels of its own (kernels/multi_token_hopper.h). Builds
// without CUDA take nothing.
#pragma once

#include "sigma/attention/multi_token_op.h"

namespace sigma {

/// Hopper; full attention on a sequence, 16-bit elements, heads of 64 channels, up to 6 neighbouring
/// query steps; no mix before the softmax, and at most 4 heads to a mix after it (their scores are
/// made once for each).
bool takes_multi_token_gpu(const MultiTokenInput& input);
/// out [B,H,N,D] and lse [B,H,N]. The backward keeps |a'| N D values a head, and score maps of some
/// heads at a time.
AttentionOutput multi_token_gpu(const MultiTokenInput& input);

}  // namespace sigma
