// Device side of sigma/base/random.h: one thread a block of Philox, the same bits as on the host.
// Torch-free.
#pragma once

#include <cstdint>

namespace sigma::kernels {

/// out [rows, width] (float64 or float32) on `device`, filled on `cuda_stream` (a cudaStream_t).
/// False: the launch failed. Exists only in builds with CUDA.
bool fill_random_cuda(void* out, bool is_double, bool normal, int64_t rows, int64_t width,
                      uint64_t seed, uint32_t stream, const uint64_t* samples, void* cuda_stream);

}  // namespace sigma::kernels
