// The pairs that ranks, a window, key_valid or a short piece hide. Device code.
#pragma once

#include <math_constants.h>

#include "sigma/attention/kernels/block_walk.h"

namespace sigma::kernels::hopper {

// Their scores become -inf. s: as an accumulator's thread holds them, its rows of ranks rank0 and
// rank1 (better still in memory: registers are scarce), columns the keys from `first` on; the piece's
// last is end - 1.
template <int n>
__device__ inline void hide(float (&s)[n], const BlockSparseGpu& a, int b, int first, int end,
                            const int& rank0, const int& rank1) {
  // One bit a column, of the thread's first row and (16 higher) its second: few registers.
  uint32_t seen = 0;
#pragma unroll 1
  for (int j = 0; j < n / 2; ++j) {
    const int key = first + j / 2 * 8 + threadIdx.x % 4 * 2 + j % 2;
    if (key >= end || (a.key_valid && !a.key_valid[int64_t(b) * a.Nk + key])) continue;
    const int rank = a.rank_q ? a.rank_k[key] : 0;
    const uint32_t window = a.rank_q && a.window > 0 ? a.window : 1u << 31;
    seen |= uint32_t(uint32_t(rank0 - rank) < window) << j;
    seen |= uint32_t(uint32_t(rank1 - rank) < window) << (j + 16);
  }
#pragma unroll
  for (int i = 0; i < n; ++i)
    if (!(seen >> (i / 4 * 2 + i % 2 + i / 2 % 2 * 16) & 1)) s[i] = -CUDART_INF_F;
}

}  // namespace sigma::kernels::hopper
