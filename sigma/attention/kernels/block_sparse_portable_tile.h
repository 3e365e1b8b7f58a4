// What the portable kernels share: the rows of a chunk, tiles loaded from memory, hidden pairs, rows
// stored, and the choice of a template. Device code, for block_sparse_portable_*.cu only.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <type_traits>

#include "sigma/attention/kernels/block_walk.h"
#include "sigma/attention/kernels/mma.h"

namespace sigma::kernels {

constexpr int kWarps = 4, kThreads = 32 * kWarps;  // a warp owns 16 of a tile's 64 rows
constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

/// The rows of chunk c for one tile of the heads of (b, g): row = head * tokens + token.
struct Chunk {
  int64_t first;     // row of [B,H,Nq] of the first head and query
  int64_t Nq;        // rows from a head to the next
  int q_first;       // first query
  int queries;       // of the chunk, at most tokens
  int heads;         // of the tile
  int tokens, part;  // part = ceil(65536 / tokens): row / tokens = row * part >> 16 for row < 64

  __device__ Chunk(const BlockWalk& walk, const BlockSparseGpu& a, int bg, int c, int tile)
      : Nq(a.Nq), q_first(walk.q_first[c]), queries(walk.q_first[c + 1] - q_first) {
    const int group = static_cast<int>(a.H / a.G);
    heads = min(walk.heads, group - tile * walk.heads);
    first = (int64_t{bg} * group + tile * walk.heads) * Nq + q_first;
    tokens = walk.tokens;
    part = 65535 / tokens + 1;
  }
  /// The rows whose token chose a piece, a bit each: bit t of `chose` for each head.
  __device__ uint64_t rows(uint64_t chose) const {
    const uint64_t one_head = chose & ~uint64_t{0} >> (64 - queries);
    uint64_t all = 0;
    for (int head = 0; head < heads; ++head) all |= one_head << head * tokens;
    return all;
  }
  __device__ int token(int row) const { return row - (row * part >> 16) * tokens; }
  /// The row of [B,H,Nq], or -1: the chunk has fewer.
  __device__ int64_t at(int row) const {
    const int head = row * part >> 16, token = row - head * tokens;
    return head < heads && token < queries ? first + head * Nq + token : -1;
  }
};

/// A piece of keys (a walk's entry, perhaps | kMasked) of (b, g).
struct Keys {
  int first, count;
  const uint8_t* valid;  // null: all

  __device__ Keys(const BlockWalk& walk, const BlockSparseGpu& a, int bg, int entry)
      : first(walk.key_first[entry & ~kMasked]),
        count(walk.key_first[(entry & ~kMasked) + 1] - first),
        valid(a.key_valid ? a.key_valid + bg / static_cast<int>(a.G) * a.Nk + first : nullptr) {}
  __device__ bool counts(int key) const { return key < count && (!valid || valid[key]); }
};

/// Starts the copy of 64 rows of `width` numbers: tile row i is row at(i) of `from`, zero if that is
/// negative; so are columns from `width` on.
template <int kUnroll, int kWidth, class At>
__device__ void load_tile(Tile<kWidth> tile, const void* from, int64_t width, At at) {
  constexpr int kUnits = Tile<kWidth>::kUnits;
  const int units = static_cast<int>(width / 8);
#pragma unroll kUnroll
  for (int i = 0; i < 64 * kUnits / kThreads; ++i) {
    const int index = i * kThreads + threadIdx.x, row = index / kUnits, unit = index % kUnits;
    const auto source = at(row);
    const bool there = source >= 0 && unit < units;
    copy_16(tile.at(row, unit),
            static_cast<const uint4*>(from) + (there ? source * units + unit : 0), there);
  }
}

/// The same of a chunk's rows of q or grad_out.
template <int kWidth>
__device__ void load_queries(Tile<kWidth> tile, const void* from, int64_t width,
                             const Chunk& chunk) {
  load_tile<2>(tile, from, width, [&](int row) { return chunk.at(row); });
}

/// The same of a piece's rows of K or V. Invalid keys may hold anything: zeros stand for them, as
/// 0 * NaN would not vanish.
template <int kWidth>
__device__ void load_keys(Tile<kWidth> tile, const void* from, int64_t width,
                          const BlockSparseGpu& a, int bg, const Keys& keys) {
  const auto first = static_cast<const uint16_t*>(from) + (bg * a.Nk + keys.first) * width;
  load_tile<8>(tile, first, width, [&](int row) { return keys.counts(row) ? row : -1; });
}

/// Scores of hidden pairs become -inf. s: a warp's 16 rows x 64 columns as C fragments; rows are
/// queries and columns keys, or kTurned the other way round.
template <bool kTurned>
__device__ void hide(float (&s)[8][4], const BlockSparseGpu& a, const Chunk& chunk,
                     const Keys& keys, bool masked, uint64_t chose) {
  if (!masked && chose == ~uint64_t{0}) return;
  const int lane = threadIdx.x % 32;
  const int row = threadIdx.x / 32 * 16 + lane / 4, column = lane % 4 * 2;
  const uint64_t rows = chunk.rows(chose);
  uint32_t seen = 0;  // bit 4j + i: s[j][i] counts
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int r = row + i / 2 % 2 * 8, c = column + i / 4 * 8 + i % 2;
    seen |= static_cast<uint32_t>(rows >> (kTurned ? c : r) & 1) << i;
  }
  // A short loop: unrolled, its addresses would take the registers of the sums.
#pragma unroll 1
  for (int i = 0; masked && i < 32; ++i) {
    const int r = row + i / 2 % 2 * 8, c = column + i / 4 * 8 + i % 2, key = kTurned ? r : c;
    bool see = (seen >> i & 1) && keys.counts(key);
    if (see && a.rank_q) {
      const int back =
          a.rank_q[chunk.q_first + chunk.token(kTurned ? c : r)] - a.rank_k[keys.first + key];
      see = back >= 0 && (a.window <= 0 || back < a.window);
    }
    if (!see) seen &= ~(1u << i);
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!(seen >> (4 * j + i) & 1)) s[j][i] = -INFINITY;
    }
  }
}

/// Half a warp's C fragments (rows lane / 4, or + 8 for half 1) times `scale` become columns
/// `first`.. of a row of `to`.
template <typename T, int n>
__device__ void store_row(void* to, int64_t row, int64_t width, int first, const float (&c)[n][4],
                          int half, float scale) {
  const int column = first + threadIdx.x % 4 * 2;
  uint32_t* const at = static_cast<uint32_t*>(to) + (row * width + column) / 2;
#pragma unroll
  for (int j = 0; j < n; ++j) {
    if (first + 8 * j < width) {
      at[4 * j] = pack<T>(c[j][2 * half] * scale, c[j][2 * half + 1] * scale);
    }
  }
}

/// Tiles of heads of a key/value head.
inline int head_tiles(const BlockWalk& walk, const BlockSparseGpu& a) {
  return static_cast<int>((a.H / a.G + walk.heads - 1) / walk.heads);
}

template <int n>
using Width = std::integral_constant<int, n>;

/// f(T{}, Width<n>{}) with the input type and the narrowest width that holds D and Dv.
template <class F>
cudaError_t with_template(const BlockSparseGpu& a, F f) {
  const int64_t width = std::max(a.D, a.Dv);
  if (a.D <= 0 || a.Dv <= 0 || a.D % 16 || a.Dv % 16 || width > 256) return cudaErrorInvalidValue;
  const auto with_width = [&](auto type) {
    if (width <= 32) return f(type, Width<32>{});
    if (width <= 64) return f(type, Width<64>{});
    if (width <= 96) return f(type, Width<96>{});
    if (width <= 128) return f(type, Width<128>{});
    return f(type, Width<256>{});
  };
  return a.half ? with_width(__half{}) : with_width(__nv_bfloat16{});
}

/// Launches `items` CTAs, with more than the usual 48 KB of shared memory.
template <class Kernel, class... More>
cudaError_t launch(Kernel kernel, int64_t items, int parts, int bytes, const BlockWalk& walk,
                   const BlockSparseGpu& a, cudaStream_t stream, const More&... more) {
  if (items == 0) return cudaSuccess;
  if (items > 0x7fffffff) return cudaErrorInvalidValue;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  kernel<<<dim3(static_cast<unsigned>(items), parts), kThreads, bytes, stream>>>(
      walk, a, head_tiles(walk, a), more...);
  return cudaGetLastError();
}

}  // namespace sigma::kernels
