// delta = rowsum(grad_out * out) [B,H,Nq], which every backward of block-sparse attention needs
// first. Torch-free.
#pragma once

#include <cuda_runtime.h>

#include "sigma/attention/kernels/block_walk.h"

namespace sigma::kernels {

/// Dv a multiple of 8, rows aligned to 16 bytes.
cudaError_t block_sparse_delta(const BlockSparseGpu& a, cudaStream_t stream);

}  // namespace sigma::kernels
