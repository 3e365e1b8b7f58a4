// One setting of LibTorch for everything that promises equal bits: training, sampling.
#pragma once

namespace sigma {

/// Equal bits whatever was computed before: no atomics, and no NaN filling of fresh memory, which
/// would only cost time. For the whole process.
void use_deterministic_kernels();

}  // namespace sigma
