// Multi-token attention on NVIDIA GPUs by kernels of its own (kernels/multi_token_hopper.h). Builds
// without CUDA take nothing.
#pragma once

#include <string>

#include "sigma/attention/multi_token_op.h"

namespace sigma {

/// Why the kernels do not take `input`; empty: they do. Full attention on a sequence, 16-bit
/// elements, heads of 64 channels, up to 6 neighbouring query steps; no mix before the softmax, and
/// at most 4 heads to a mix after it (their scores are made once for each).
std::string multi_token_gpu_refuses(const MultiTokenInput& input);
/// out [B,H,N,D] and lse [B,H,N]. The backward keeps |a'| N D values a head, and score maps of some
/// heads at a time.
AttentionOutput multi_token_gpu(const MultiTokenInput& input);

}  // namespace sigma
