// Scores of blocks and the choice among them on an NVIDIA GPU (kernels/select_blocks.h): the lists
// of all rows at once, without a matrix of scores in memory and without waiting for the host.
#pragma once

#include <torch/types.h>

#include "sigma/attention/block_plan.h"
#include "sigma/attention/selection.h"

namespace sigma {

/// What the layout fixes, on the device. Rows are tokens if causal, else tiles.
struct SelectionTables {
  torch::Tensor seen;           // causal: int32 [Ng] how many windows each token sees
  torch::Tensor own;            // causal: int32 [Ng] its block
  torch::Tensor tile_start;     // else int32 [tiles + 1]
  torch::Tensor block_windows;  // dart, max_min: the blocks as windows (windows.h)
};

/// Of ascending window ranks [windows]. Errors: kUsage (more forced blocks than n).
SelectionTables selection_tables(const SelectionConfig& config, const BlockGeometry& geometry,
                                 const torch::Tensor& window_rank, bool causal,
                                 torch::Device device);

struct SelectionInput {
  torch::Tensor q;    // [B,H,Ng,D] grid tokens in packed order
  torch::Tensor ck;   // [B,G,windows,D] compressed keys
  torch::Tensor lse;  // [B,H,Ng] float32: of all windows' scores, if known
  torch::Tensor raw;  // [B,G,Ng,D] keys whose means dart and max_min compare
  double scale = 1;
  int64_t size = 0, stride = 0;  // of a window of a sequence
};

/// int32 [B,G,R,min(n, W)], as select_blocks of selection.h. Undefined where the kernels do not
/// take the input (dtypes other than float32, float16 and bfloat16, D over 128, very many blocks)
/// or may not run (path.h), or in a build without CUDA.
torch::Tensor select_blocks_gpu(const SelectionConfig& config, const BlockGeometry& geometry,
                                const SelectionTables& tables, const SelectionInput& input);

}  // namespace sigma
