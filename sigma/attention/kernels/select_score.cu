// Scores of blocks and the choice among them, in one walk over the windows (select_blocks.h).
//
// A thread block has one group of heads, and a few queries (token rows) or a tile of them. Its rows
// of q, one a (head, query), lie in shared memory. In each step a warp takes 32 windows into
// registers, once, and multiplies them with all rows, 16 at a time (select_product.h):
//
//   S^T [32 windows, 16 rows],   p = 2^(scale log2e S^T - log2e lse)
//
// Windows are the rows of the matrix instruction, so that the same lane holds the same window and
// query of every head: the sum over heads, in order, is an addition in registers. Tiles add up
// their queries, too: within a lane, at the end over the four lanes of a window.
//
// The sums go to a ring of windows in shared memory, where eq. 9 turns them into scores of the
// blocks whose last window is there (each score is the sum of its windows in order), or are the
// scores themselves. More rows of q than shared memory takes come one chunk after the other. In
// the end a warp (token rows), or the thread block (tiles), chooses (select_row.h).
#include "sigma/attention/kernels/select_product.h"
#include "sigma/attention/kernels/select_row.h"
#include "sigma/attention/kernels/select_score.h"

namespace sigma::kernels {
namespace {

constexpr int kThreads = 32 * kScoreWarps;
constexpr float kNone = 3e38f;  // the lse of a row that is not there: p = 0

// Eq. 9 for the blocks that end in the step before window `end`, or all up to `blocks` if it is the
// last step: a warp has a query, a lane a block.
__device__ void add_blocks(const SelectBlocksGpu& a, const ScorePlan& s, float* scores,
                           const float* ring, const float* weight, int begin, int end, int blocks,
                           bool last) {
  const int ratio = a.block / a.stride, before = a.size / a.stride - 1;
  const int first_block = begin / ratio;
  const int end_block = last ? blocks : min(end / ratio, blocks);
  for (int t = threadIdx.x / 32; t < s.queries; t += kScoreWarps) {
    const float* x = ring + t * kRingPitch;
    for (int j = first_block + static_cast<int>(threadIdx.x) % 32; j < end_block; j += 32) {
      const int own = j * ratio, to = min(own + ratio, end);  // the windows that begin in it
      float sum = 0;
      for (int i = max(own - before, 0); i < own; ++i)
        sum = fmaf(weight[i - own + before], x[i & (kRing - 1)], sum);
      const float* w = weight + before;
      int i = own;
      if (ratio % 4 == 0) {
        for (; i + 4 <= to; i += 4, w += 4) {
          const float4 y = *reinterpret_cast<const float4*>(x + (i & (kRing - 1)));
          sum = fmaf(w[3], y.w, fmaf(w[2], y.z, fmaf(w[1], y.y, fmaf(w[0], y.x, sum))));
        }
      }
      for (; i < to; ++i, ++w) sum = fmaf(*w, x[i & (kRing - 1)], sum);
      scores[t * s.pitch + j] += sum;
    }
  }
}

template <typename T, int kD, bool kTiles>
__global__ void __launch_bounds__(kThreads, kD <= 64 && kTiles && sizeof(T) == 2 ? 4 : 3)
    score_kernel(const SelectBlocksGpu a, const ScorePlan s) {
  using Rows = RowTile<T, kD>;
  extern __shared__ __align__(16) unsigned char memory[];
  float* scores = reinterpret_cast<float*>(memory);  // [queries,pitch]
  float* ring = reinterpret_cast<float*>(memory + s.ring);
  float* weight = reinterpret_cast<float*>(memory + s.weight);
  const Rows tile{reinterpret_cast<uint4*>(memory + s.tile)};
  float* lse = reinterpret_cast<float*>(memory + s.lse);        // [rows] log2e lse
  int32_t* seen = reinterpret_cast<int32_t*>(memory + s.seen);  // [queries]
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int r = static_cast<int>(threadIdx.x) % 32 / 4, c = static_cast<int>(threadIdx.x) % 4;
  const int64_t pair = blockIdx.y;
  const int M = static_cast<int>(a.H) / static_cast<int>(a.G);
  const unsigned G = static_cast<unsigned>(a.G);
  const int64_t first_head = blockIdx.y / G * a.H + blockIdx.y % G * M;  // of [B H]
  const T* ck = static_cast<const T*>(a.ck) + pair * a.windows * a.D;

  // Later rows see more: they begin first.
  const int64_t place = gridDim.x - 1 - blockIdx.x;
  const int64_t first = kTiles ? a.tile_start[place] : place * s.queries;
  const int queries = static_cast<int>(kTiles ? a.tile_start[place + 1] - first
                                              : min(a.N - first, static_cast<int64_t>(s.queries)));
  const int W = static_cast<int>(a.W);
  const int windows = static_cast<int>(a.windows);
  const int least = a.seen ? a.seen[first] : windows;  // that all queries see
  const int most = a.seen ? a.seen[first + queries - 1] : windows;
  const int64_t last_row = kTiles ? place : first + queries - 1;
  const int blocks =
      a.causal ? min((a.own ? a.own[last_row] : static_cast<int>(last_row)) + 1, W) : W;

  for (int i = threadIdx.x; i < s.queries * s.pitch; i += kThreads) scores[i] = 0;
  if (!kTiles && threadIdx.x < s.queries) {
    const int t = static_cast<int>(threadIdx.x);
    seen[t] = t >= queries ? 0 : a.seen ? a.seen[first + t] : windows;
  }
  if (!s.direct) {
    const int before = a.size - a.stride;
    for (int i = threadIdx.x; i < before / a.stride + a.block / a.stride; i += kThreads) {
      const int at = i * a.stride - before;  // the window's first token, from the block's
      weight[i] = static_cast<float>(min(at + a.size, a.block) - max(at, 0)) / a.stride;
    }
  }

  const float factor = a.scale * kLog2e;
  const int all_rows = kTiles ? queries * M : M;  // tiles: of (head, query); tokens: heads
  const int chunk = kTiles ? s.rows : s.heads;
  for (int chunk0 = 0; chunk0 < all_rows; chunk0 += chunk) {
    // The chunk's rows of q.
    const int live = min(chunk, all_rows - chunk0);
    const int rows = kTiles ? (live + 15) / 16 * 16 : (live * s.queries + 15) / 16 * 16;
    __syncthreads();  // the chunk before is used
    for (int i = threadIdx.x; i < rows * Rows::kUnits; i += kThreads) {
      const int row = i / Rows::kUnits;
      const int width = kTiles ? queries : s.queries;
      const int head = kTiles ? (chunk0 + row) / width : chunk0 + row / width;
      const int t = kTiles ? (chunk0 + row) % width : row % width;
      const bool there = head < (kTiles ? M : chunk0 + live) && t < queries;
      const int64_t from = there ? (first_head + head) * a.N + first + t : 0;
      tile.copy(row, i % Rows::kUnits, static_cast<const T*>(a.q) + from * a.D, a.D, there);
      if (i % Rows::kUnits == 0) lse[row] = there ? a.lse[from] * kLog2e : kNone;
    }
    RowFragments<T, kD> keys;
    keys.load(ck, 32 * warp, most, a.D);
    wait_copies();
    __syncthreads();
    // Rows that see nothing, or NaN, have p = 0: then every p is looked at.
    bool odd = false;
    for (int i = threadIdx.x; i < rows; i += kThreads) {
      if (isfinite(lse[i])) continue;
      odd = true;
      lse[i] = INFINITY;
    }
    odd = __syncthreads_or(odd);

    for (int begin = 0; begin < most; begin += kPieceWindows) {
      keys.use();
      const int mine = begin + 32 * warp;  // the warp's first window
      const bool edge = odd || mine + 32 > least;
      const int end = begin + kPieceWindows;
      // Adds p of the rows of q from `row` on, 16 every `step`. At an edge `limit(j)` is what the
      // query of column j sees.
      const auto add_up = [&](int row, int step, auto limit, auto add) {
        const auto walk = [&](auto at_edge) {
          constexpr bool kEdge = decltype(at_edge)::value;
#pragma unroll(kEdge ? 1 : 2)
          for (; row < rows; row += step) {
            float p[2][2][4];
            keys.multiply(p, tile, row);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              const float base = lse[row + j / 2 * 8 + 2 * c + j % 2];
              const int end = kEdge ? limit(j / 2 * 8 + 2 * c + j % 2) - mine - r : 0;
#pragma unroll
              for (int i = 0; i < 4; ++i) {
                float x = exp2_fast(fmaf(p[i / 2][j / 2][i % 2 * 2 + j % 2], factor, -base));
                if (kEdge) x = 8 * i < end ? fmaxf(x, 0.0f) : 0.0f;  // not NaN
                add(i, j, x);
              }
            }
          }
        };
        if (edge) walk(std::true_type());
        else walk(std::false_type());
      };
      // Adds x to the sum of query t and the lane's window i.
      const auto put = [&](int t, int i, float x) {
        const int window = mine + 8 * i + r;
        if (s.direct) {
          if (window < W) scores[t * s.pitch + window] += x;
        } else {
          ring[t * kRingPitch + (window & (kRing - 1))] = x;
        }
      };
      if constexpr (kTiles) {
        float sum[4] = {};
        if (mine < most) {
          add_up(0, 16, [&](int) { return windows; }, [&](int i, int, float x) { sum[i] += x; });
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sum[i] += __shfl_xor_sync(kAll, sum[i], 1);
          sum[i] += __shfl_xor_sync(kAll, sum[i], 2);
          if (c == 0) put(0, i, sum[i]);
        }
      } else {
        const int step = max(s.queries, 16);  // rows from one head, or two, to the next
        for (int t0 = 0; t0 < s.queries; t0 += 16) {
          float sum[4][4] = {};  // [window][query]
          if (mine < most) {
            add_up(
                t0, step, [&](int j) { return seen[(t0 + j) & (s.queries - 1)]; },
                [&](int i, int j, float x) { sum[i][j] += x; });
          }
#pragma unroll
          for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              if (s.queries == 8) {  // the two halves are two heads
                put(2 * c + j, i, sum[i][j] + sum[i][j + 2]);
              } else {
                put(t0 + 2 * c + j, i, sum[i][j]);
                put(t0 + 8 + 2 * c + j, i, sum[i][j + 2]);
              }
            }
          }
        }
      }
      keys.load(ck, mine + kPieceWindows, most, a.D);  // on their way during what follows
      if (s.direct) continue;
      __syncthreads();  // all windows of the step are in the ring
      add_blocks(a, s, scores, ring, weight, begin, end, blocks, end >= most);
      __syncthreads();  // the next step overwrites it
    }
  }

  __syncthreads();
  if (a.scores_out) {
    for (int t = 0; t < (kTiles ? 1 : queries); ++t) {
      const int64_t row = kTiles ? place : first + t;
      for (int j = threadIdx.x; j < W; j += kThreads)
        a.scores_out[(pair * a.R + row) * a.W + j] = scores[t * s.pitch + j];
    }
    __syncthreads();  // before the scores become keys
  }
  if constexpr (kTiles) {
    choose_row(a, Team<kThreads>(), team_room(a, memory + s.room), scores, pair, place);
  } else {
    if (warp >= s.teams) return;
    const TeamRoom room = team_room(a, memory + s.room + warp * team_bytes(a));
    for (int t = warp; t < queries; t += s.teams)
      choose_row(a, Team<32>(), room, scores + t * s.pitch, pair, first + t);
  }
}

}  // namespace

cudaError_t select_blocks_gpu(const SelectBlocksGpu& a, cudaStream_t stream) {
  if (a.B * a.G * a.R * a.W == 0) return cudaSuccess;
  const bool tiles = a.tile_start != nullptr;
  const bool fits =
      a.H % a.G == 0 && a.B * a.G <= 65535 && a.n >= 1 && a.lse && a.lists &&
      a.W < int64_t{1} << 30 && a.windows < int64_t{1} << 30 && (tiles || a.R == a.N) &&
      !(tiles && a.seen) &&
      (a.stride == 0 || (a.size % a.stride == 0 && a.block % a.stride == 0 && a.size <= a.block &&
                         a.size / a.stride + a.block / a.stride - 2 <= kHistory));
  if (!fits) return cudaErrorInvalidValue;
  int device = 0, limit = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  return with_type(a, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int kD = width;
    const int64_t row_bytes = kD * static_cast<int64_t>(sizeof(T));
    const ScorePlan s = score_plan(a, row_bytes, limit, sizeof(T) == 2 ? kScoreRows : 64);
    if (s.bytes == 0) return cudaErrorInvalidValue;
    cudaError_t error = cudaSuccess;
    if (!a.lse_given && a.windows > 0) error = window_lse_gpu(a, stream);
    if (error == cudaSuccess && a.strategy != SelectStrategy::kTopN)
      error = block_distances_gpu(a, stream);
    if (error != cudaSuccess) return error;
    const auto kernel = tiles ? score_kernel<T, kD, true> : score_kernel<T, kD, false>;
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, s.bytes);
    if (error != cudaSuccess) return error;
    const int64_t per = tiles ? 1 : s.queries;
    const dim3 grid(static_cast<unsigned>((a.R + per - 1) / per), static_cast<unsigned>(a.B * a.G));
    kernel<<<grid, kThreads, static_cast<size_t>(s.bytes), stream>>>(a, s);
    return cudaGetLastError();
  });
}

}  // namespace sigma::kernels
