// delta = rowsum(grad_out * out) [B,H,Nq], in fp32, which every backward of block-sparse attention
// needs first. It reads two tensors once: the memory's rate is its floor. Torch-free.
#pragma once

#include <cuda_runtime.h>

#include "sigma/attention/kernels/block_walk.h"

namespace sigma::kernels {

/// Dv a multiple of 8, rows aligned to 16 bytes. If not null, stats [B,H,Nq] gets what the
/// gradients want of a row side by side: (lse log2 e, delta), where an lse of -inf, of a row that
/// sees nothing, becomes +inf, so that exp2(score - lse) = 0.
cudaError_t block_sparse_delta(const BlockSparseGpu& a, float2* stats, cudaStream_t stream);

}  // namespace sigma::kernels
