// Block-sparse attention on NVIDIA GPUs, in bfloat16 and float16.
//
//   portable   sm_80 and later (mma.sync): D and Dv up to 256
//   hopper     sm_90 (TMA, wgmma): D and Dv up to 128
//
// Lists become walks on the device (kernels/block_walk.h); nothing waits for the host, and the whole
// can be captured in a CUDA graph where `tables` are given.
#pragma once

#include "sigma/attention/block_sparse.h"

namespace sigma {

enum class BlockSparsePath { kReference, kPortable, kHopper };

/// The fastest path that takes `input` (on a GPU), or the one that SIGMA_ATTENTION=reference,
/// portable or hopper names. Errors: kUsage (another name; a named path that does not take it).
BlockSparsePath block_sparse_path(const BlockSparseInput& input);

/// Of a checked input.
AttentionOutput block_sparse_attention_gpu(const BlockSparseInput& input, BlockSparsePath path);

}  // namespace sigma
