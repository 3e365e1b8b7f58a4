// Block-sparse attention on Hopper (sm_90a): TMA, wgmma. D = Dv is 64 or 128; bfloat16 and float16.
// No allocation, no host synchronisation, no atomics: capturable, and reruns are equal to the bit.
#pragma once

#include <cuda_runtime.h>

#include "sigma/attention/kernels/block_walk.h"

namespace sigma::kernels {

// out and lse. Every row of them is written, also where a query sees nothing (0, -inf).
cudaError_t block_sparse_hopper_forward(const BlockSparseGpu& a, const BlockWalk& w,
                                        cudaStream_t stream);

// delta (all rows) and grad_q, by the rows of the walk.
cudaError_t block_sparse_hopper_grad_q(const BlockSparseGpu& a, const BlockWalk& w,
                                       cudaStream_t stream);

// grad_k and grad_v, by pieces (col_*); reads delta, so after grad_q.
cudaError_t block_sparse_hopper_grad_kv(const BlockSparseGpu& a, const BlockWalk& w,
                                        cudaStream_t stream);

}  // namespace sigma::kernels
