// Block-sparse attention on Hopper (sm_90a): TMA, wgmma. D = Dv is 64 or 128; bfloat16 and float16.
// No allocation, no host synchronisation, no atomics on floats: capturable, and reruns are equal to the bit.
#pragma once

#include <cuda_runtime.h>

#include "sigma/attention/kernels/block_walk.h"

namespace sigma::kernels {

// out and lse. Every row of them is written, also where a query sees nothing (0, -inf).
// `memory`: as many bytes, perhaps none, as the first says.
int64_t block_sparse_hopper_forward_bytes(const BlockSparseGpu& a, const BlockWalk& w);
cudaError_t block_sparse_hopper_forward(const BlockSparseGpu& a, const BlockWalk& w, void* memory,
                                        cudaStream_t stream);

}  // namespace sigma::kernels
