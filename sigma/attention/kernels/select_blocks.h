// Which blocks each row of queries attends, scored and chosen on the GPU. Torch-free; all pointers
// are device memory, contiguous. The definitions: sigma/attention/selection.h.
//
//   s[h,t,i]  = scale q[h,t] . ck[i]              windows i that query t sees, i < seen[t]
//   p[h,t,i]  = exp(s[h,t,i] - lse[h,t])          lse = log sum_i exp s: rows without one: p = 0
//   score[j]  = sum_h sum_t sum_i w_ij p[h,t,i]   heads of a group; queries of the row; eq. 9
//
// and the choice of n blocks: the forced ones, then by `strategy`. Rows are tiles of queries or
// single queries. Neither s, p nor the scores are written to memory: a thread block walks all
// windows once and keeps the scores of its rows on chip, then chooses (select_score.cu). All sums
// have a fixed order. Nothing is allocated and the host does not wait.
//
// Refused (cudaErrorInvalidValue, for a caller with another path): D over 128 or not a multiple of
// 16 bytes, pointers that are not aligned to 16 bytes, more blocks than shared memory holds (token
// rows: W over about 5000 on sm_90), b/d + l/d > 66, and query rows that see windows in part
// (`seen`) together with tiles.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace sigma::kernels {

enum class SelectType : int32_t { kFloat32, kFloat16, kBfloat16 };
enum class SelectStrategy : int32_t { kTopN, kDart, kMaxMin };

struct SelectBlocksGpu {
  int64_t B = 0, H = 0, G = 0, D = 0;
  int64_t N = 0;        // queries
  int64_t R = 0;        // rows: tiles, or N
  int64_t windows = 0;  // compressed keys
  int64_t W = 0;        // blocks

  // The scores.
  SelectType type = SelectType::kBfloat16;  // of q and ck
  const void* q = nullptr;                  // [B,H,N,D]
  const void* ck = nullptr;                 // [B,G,windows,D]
  float scale = 1;                          // positive
  float* lse = nullptr;                     // [B,H,N] natural log
  bool lse_given = false;                   // else lse is room, written first
  const int32_t* seen = nullptr;        // [N] ascending: how many windows a query sees; null: all
  const int32_t* tile_start = nullptr;  // [R+1] first query of each tile, and the end; null: tokens
  // Eq. 9, windows of `size` tokens every `stride` of a sequence, blocks of `block`; stride = 0:
  // the windows are the blocks.
  int32_t size = 0, stride = 0, block = 0;
  float* scores_out = nullptr;  // [B,G,R,W] what was scored, for tests; null: not written

  // The choice.
  int64_t n = 16;
  const int32_t* own = nullptr;               // [R] block of each row; null: row r is in block r
  bool causal = false;                        // candidates are blocks 0 .. own
  int32_t frames = 1, height = 1, width = 1;  // blocks on each axis
  int32_t init_blocks = 0;                    // the first so many are forced
  int32_t local_radius = -1;                  // and those so near on each axis; -1: none
  SelectStrategy strategy = SelectStrategy::kTopN;
  int32_t pool_factor = 4;  // dart, max_min: among the best pool_factor * n; 0: all
  int32_t num_pivots = 2;
  bool pivot_by_norm = false;
  double alpha = 1;
  const float* keys = nullptr;  // dart, max_min: [B,G,W,D] mean keys
  float* apart = nullptr;       // and room: [B,G,W,W] 1 - cosine
  float* norm = nullptr;        // [B,G,W] L1 norms of keys

  int32_t* lists = nullptr;  // [B,G,R,min(n,W)] ascending, -1 at the end
};

/// Scores and chooses.
cudaError_t select_blocks_gpu(const SelectBlocksGpu& a, cudaStream_t stream);

/// Chooses by given scores [B,G,R,W]; q, ck and what concerns them is not read.
cudaError_t select_rows_gpu(const SelectBlocksGpu& a, const float* scores, cudaStream_t stream);

/// The parts: lse of all windows' scores; how far apart the blocks' keys are.
cudaError_t window_lse_gpu(const SelectBlocksGpu& a, cudaStream_t stream);
cudaError_t block_distances_gpu(const SelectBlocksGpu& a, cudaStream_t stream);

}  // namespace sigma::kernels
