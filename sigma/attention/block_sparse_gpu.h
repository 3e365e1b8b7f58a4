// Block-sparse attention on NVIDIA GPUs, in bfloat16 and float16.
//
//   portable   sm_80 and later (mma.sync): D and Dv up to 256
//   hopper     sm_90 (TMA, wgmma): D and Dv up to 128
//
// Lists become walks on the device (kernels/block_walk.h); nothing waits for the host, and the whole
// can be captured in a CUDA graph where `tables` are given.
#pragma once

#include "sigma/attention/block_sparse.h"
#include "sigma/attention/path.h"

namespace sigma {

/// The path that `input`, on a GPU, takes.
AttentionPath block_sparse_path(const BlockSparseInput& input);

/// Of a checked input.
AttentionOutput block_sparse_attention_gpu(const BlockSparseInput& input, AttentionPath path);

}  // namespace sigma
