// The forward of block_sparse_portable.h: a CTA walks the pieces of one chunk with an online softmax.
#include "sigma/attention/kernels/block_sparse_portable.h"
#include "sigma/attention/kernels/block_sparse_portable_tile.h"

namespace sigma::kernels {
namespace {

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads, kWidth <= 64    ? 4
                                            : kWidth <= 128 ? 3
                                                            : 2)
    forward_kernel(const __grid_constant__ BlockWalk walk, const __grid_constant__ BlockSparseGpu a,
                   int tiles) {
  extern __shared__ __align__(512) uint8_t shared[];
  const Tile<kWidth> q_tile{shared_address(shared)};
  const Tile<kWidth> k_tile{q_tile.base + q_tile.kBytes}, v_tile{k_tile.base + q_tile.kBytes};

  // Last chunks first: under a causal mask they have the longest walks.
  const int item = blockIdx.x / tiles, chunks = static_cast<int>(walk.C), bg = item / chunks;
  const int c = chunks - 1 - item % chunks;
  const Chunk chunk(walk, a, bg, c, blockIdx.x % tiles);
  const int64_t list = (bg * walk.C + c) * walk.cap;
  const int count = walk.count[bg * walk.C + c];

  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16;  // of this warp
  float o[kWidth / 8][4] = {};
  float top[2] = {-INFINITY, -INFINITY};  // of the rows lane / 4 and lane / 4 + 8, in powers of 2
  float sum[2] = {};                      // of this lane's columns
  const float scale = a.scale * kLog2e;

  int next = 0;
  if (count > 0) {
    next = walk.piece[list];
    load_queries(q_tile, a.q, a.D, chunk);
    load_keys(k_tile, a.k, a.D, a, bg, Keys(walk, a, bg, next));
  }
  for (int i = 0; i < count; ++i) {
    const int entry = next;
    const Keys keys(walk, a, bg, entry);
    wait_copies();
    __syncthreads();  // K is here for all warps, and all are done with the last V
    load_keys(v_tile, a.v, a.Dv, a, bg, keys);
    if (i + 1 < count) next = walk.piece[list + i + 1];

    float s[8][4] = {};  // S = scale Q K^T, in powers of 2
    multiply_transposed<T>(s, q_tile, row, k_tile);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int x = 0; x < 4; ++x) s[j][x] *= scale;
    }
    const uint64_t chose = walk.chose ? walk.chose[list + i] : ~uint64_t{0};
    hide<false>(s, a, chunk, keys, entry & kMasked, chose);

    // P = 2^(S - max), row by row; what was summed under the old maximum shrinks.
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = top[half];
#pragma unroll
      for (int j = 0; j < 8; ++j) most = fmaxf(most, fmaxf(s[j][2 * half], s[j][2 * half + 1]));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      const float from = most == -INFINITY ? 0 : most;  // nothing seen yet: no -inf - -inf
      const float shrink = exp2_fast(top[half] - from);
      top[half] = most;
      sum[half] *= shrink;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int x = 2 * half; x < 2 * half + 2; ++x) {
          s[j][x] = exp2_fast(s[j][x] - from);
          sum[half] += s[j][x];
        }
      }
#pragma unroll
      for (int j = 0; j < kWidth / 8; ++j) {
        o[j][2 * half] *= shrink;
        o[j][2 * half + 1] *= shrink;
      }
    }
    uint32_t p[4][4];
    round_to_a<T>(p, s);
    wait_copies();
    __syncthreads();  // V is here for all warps, and all are done with K
    if (i + 1 < count) load_keys(k_tile, a.k, a.D, a, bg, Keys(walk, a, bg, next));
    multiply<T>(o, p, v_tile, 0);  // O += P V
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = sum[half];
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    const int64_t at = chunk.at(row + lane / 4 + 8 * half);
    if (at < 0) continue;
    store_row<T>(a.out, at, a.Dv, 0, o, half, total > 0 ? 1 / total : 0);
    if (lane % 4 == 0) a.lse[at] = total > 0 ? (top[half] + log2f(total)) * kLn2 : -INFINITY;
  }
}

}  // namespace

cudaError_t block_sparse_portable_forward(const BlockSparseGpu& a, const BlockWalk& walk,
                                          cudaStream_t stream) {
  return with_template(a, [&](auto type, auto width) {
    using T = decltype(type);
    return launch(forward_kernel<T, width>, a.B * a.G * walk.C * head_tiles(walk, a), 1,
                  3 * Tile<width>::kBytes, walk, a, stream);
  });
}

}  // namespace sigma::kernels
