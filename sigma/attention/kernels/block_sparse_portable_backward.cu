// The backward of block_sparse_portable.h, twice over the same pairs: by chunks for dQ, by pieces
// for dK and dV, so that each sum has one owner and one order.
#include "sigma/attention/kernels/block_sparse_delta.h"
#include "sigma/attention/kernels/block_sparse_portable.h"
#include "sigma/attention/kernels/block_sparse_portable_parts.h"
#include "sigma/attention/kernels/block_sparse_portable_tile.h"

namespace sigma::kernels {
namespace {

template <int kWidth>
constexpr int kStages = kWidth > 128 ? 1 : 2;

/// P = 2^(S - lse). A query that sees nothing has lse -inf and S = -inf: 0, not 2^(-inf + inf).
__device__ float probability(float s, float lse) {
  return exp2_fast(s - (lse == -INFINITY ? 0 : lse));
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads, kWidth <= 64    ? 3
                                            : kWidth <= 128 ? 2
                                                            : 1)
    grad_q_kernel(const __grid_constant__ BlockWalk walk, const __grid_constant__ BlockSparseGpu a,
                  int tiles) {
  constexpr int kTile = Tile<kWidth>::kBytes;
  extern __shared__ __align__(512) uint8_t shared[];
  const uint32_t base = shared_address(shared);
  const Tile<kWidth> q_tile{base}, grad_out_tile{base + kTile};
  const auto keys_tile = [&](int stage) { return Tile<kWidth>{base + (2 + 2 * stage) * kTile}; };
  const auto values_tile = [&](int stage) { return Tile<kWidth>{base + (3 + 2 * stage) * kTile}; };

  const int item = blockIdx.x / tiles, chunks = static_cast<int>(walk.C), bg = item / chunks;
  const int c = chunks - 1 - item % chunks;
  const Chunk chunk(walk, a, bg, c, blockIdx.x % tiles);
  const int64_t list = bg * walk.C + c;
  const int count = walk.count[list];
  const int32_t* const pieces = walk.piece + list * walk.cap;
  const auto load = [&](int stage, int entry) {
    const Keys keys(walk, a, bg, entry);
    load_keys(keys_tile(stage), a.k, a.D, a, bg, keys);
    load_keys(values_tile(stage), a.v, a.Dv, a, bg, keys);
  };

  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16;
  const float scale = a.scale * kLog2e;
  float grad_q[kWidth / 8][4] = {};
  float lse[2] = {}, delta[2] = {};
  for (int half = 0; half < 2; ++half) {
    const int64_t at = chunk.at(row + lane / 4 + 8 * half);
    if (at < 0) continue;
    lse[half] = a.lse[at] * kLog2e;
    delta[half] = a.delta[at];
  }

  int entry = 0, next = 0;
  if (count > 0) {
    next = pieces[0];
    load_queries(q_tile, a.q, a.D, chunk);
    load_queries(grad_out_tile, a.grad_out, a.Dv, chunk);
    if (kStages<kWidth> == 2) load(0, next);
  }
  for (int i = 0; i < count; ++i) {
    const int stage = i % kStages<kWidth>;
    entry = next;
    if (kStages<kWidth> == 1) {
      __syncthreads();  // every warp is done with the last piece, whose place this one takes
      load(0, entry);
    }
    wait_copies();
    __syncthreads();  // piece i is here for all, and every warp is done with piece i - 1
    if (i + 1 < count) {
      next = pieces[i + 1];
      if (kStages<kWidth> == 2) load(1 - stage, next);
    }

    float s[8][4] = {}, ds[8][4];
    multiply_transposed<T>(s, q_tile, row, keys_tile(stage));
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int x = 0; x < 4; ++x) s[j][x] *= scale;
    }
    const uint64_t chose = walk.chose ? walk.chose[list * walk.cap + i] : ~uint64_t{0};
    hide<false>(s, a, chunk, Keys(walk, a, bg, entry), entry & kMasked, chose);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int x = 0; x < 4; ++x) ds[j][x] = -delta[x / 2];
    }
    multiply_transposed<T>(ds, grad_out_tile, row, values_tile(stage));
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int x = 0; x < 4; ++x) {
        ds[j][x] *= probability(s[j][x], lse[x / 2]);
      }
    }
    uint32_t rounded[4][4];
    round_to_a<T>(rounded, ds);
    multiply<T>(grad_q, rounded, keys_tile(stage), 0);  // dQ += dS K
  }
  for (int half = 0; half < 2; ++half) {
    const int64_t at = chunk.at(row + lane / 4 + 8 * half);
    if (at >= 0) store_row<T>(a.grad_q, at, a.D, 0, grad_q, half, a.scale);
  }
}

// Wide heads: each CTA sums kColumns columns of dK and dV (blockIdx.y of them), as registers allow.
template <int kWidth>
struct Columns {
  static constexpr int kColumns = kWidth > 128 ? 128 : kWidth;
  static constexpr int kParts = kWidth / kColumns;
  static constexpr int kTiles = 2 + 2 * kStages<kWidth>;   // K, V; Q and grad_out of each stage
  static constexpr int kStatistics = 128 * sizeof(float);  // lse and delta of each stage
  static constexpr int kBytes = kTiles * Tile<kWidth>::kBytes + kStages<kWidth> * kStatistics;
};

// All is turned round: S^T = K Q^T, so that a warp owns 16 keys and P^T, dS^T are its A fragments.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads, kWidth <= 64    ? 3
                                            : kWidth <= 128 ? 2
                                                            : 1)
    grad_kv_kernel(const __grid_constant__ BlockWalk walk, const __grid_constant__ BlockSparseGpu a,
                   int tiles, const PortableParts parts) {
  constexpr int kTile = Tile<kWidth>::kBytes;
  using L = Columns<kWidth>;
  extern __shared__ __align__(512) uint8_t shared[];
  const uint32_t base = shared_address(shared);
  const Tile<kWidth> keys_tile{base}, values_tile{base + kTile};
  const auto q_tile = [&](int stage) { return Tile<kWidth>{base + (2 + 2 * stage) * kTile}; };
  const auto grad_out_tile = [&](int stage) {
    return Tile<kWidth>{base + (3 + 2 * stage) * kTile};
  };
  const auto statistics = [&](int stage) {
    return reinterpret_cast<float*>(shared + L::kTiles * kTile + stage * L::kStatistics);
  };

  const int items = static_cast<int>(walk.P) + parts.cuts, bg = blockIdx.x / items;
  const Task task(walk, parts, walk.col_start + bg * (walk.P + 1), bg, blockIdx.x % items);
  if (task.piece < 0) return;
  const Keys keys(walk, a, bg, task.piece);
  const int64_t column = bg * walk.C * walk.cap + task.first;
  // The chunks that visit the piece, each with every tile of its heads.
  const int count = (task.last - task.first) * tiles;
  const auto chunk_of = [&](int i, int entry) {
    return Chunk(walk, a, bg, entry & ~kMasked, i % tiles);
  };
  const auto load = [&](int stage, const Chunk& chunk) {
    load_queries(q_tile(stage), a.q, a.D, chunk);
    load_queries(grad_out_tile(stage), a.grad_out, a.Dv, chunk);
    // Rows that are not there have q, grad_out, lse and delta 0: they add 1 * 0 to dV, 0 to dK.
    const int64_t source = chunk.at(threadIdx.x % 64);
    copy_4(shared_address(statistics(stage) + threadIdx.x),
           (threadIdx.x < 64 ? a.lse : a.delta) + (source < 0 ? 0 : source), source >= 0);
  };

  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16;
  const int first = blockIdx.y * L::kColumns;
  const float scale = a.scale * kLog2e;
  float grad_k[L::kColumns / 8][4] = {}, grad_v[L::kColumns / 8][4] = {};
  int entry = 0, next = 0;
  if (count > 0) {
    next = walk.col_chunk[column];
    load_keys(keys_tile, a.k, a.D, a, bg, keys);
    load_keys(values_tile, a.v, a.Dv, a, bg, keys);
    if (kStages<kWidth> == 2) load(0, chunk_of(0, next));
  }
  for (int i = 0; i < count; ++i) {
    const int stage = i % kStages<kWidth>;
    entry = next;
    if (kStages<kWidth> == 1) {
      __syncthreads();  // every warp is done with the last chunk, whose place this one takes
      load(0, chunk_of(i, entry));
    }
    wait_copies();
    __syncthreads();  // chunk i is here for all, and every warp is done with chunk i - 1
    if (i + 1 < count) {
      next = walk.col_chunk[column + (i + 1) / tiles];
      if (kStages<kWidth> == 2) load(1 - stage, chunk_of(i + 1, next));
    }

    float p[8][4] = {}, ds[8][4];
    uint32_t rounded[4][4];
    multiply_transposed<T>(p, keys_tile, row, q_tile(stage));
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int x = 0; x < 4; ++x) p[j][x] *= scale;
    }
    const uint64_t chose = walk.col_chose ? walk.col_chose[column + i / tiles] : ~uint64_t{0};
    hide<true>(p, a, chunk_of(i, entry), keys, entry & kMasked, chose);
    const float* const lse = statistics(stage) + lane % 4 * 2;
    const float* const delta = lse + 64;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int x = 0; x < 4; ++x) p[j][x] = probability(p[j][x], lse[8 * j + x % 2] * kLog2e);
    }
    round_to_a<T>(rounded, p);
    multiply<T>(grad_v, rounded, grad_out_tile(stage), first / 8);  // dV += P^T dO
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int x = 0; x < 4; ++x) ds[j][x] = -delta[8 * j + x % 2];
    }
    multiply_transposed<T>(ds, values_tile, row, grad_out_tile(stage));
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int x = 0; x < 4; ++x) ds[j][x] *= p[j][x];
    }
    round_to_a<T>(rounded, ds);
    multiply<T>(grad_k, rounded, q_tile(stage), first / 8);  // dK += dS^T Q
  }
  for (int half = 0; half < 2; ++half) {
    const int key = row + lane / 4 + 8 * half;
    if (key >= keys.count) continue;
    if (task.slot >= 0) {
      float* const to = parts.sums + (task.slot * 128 + key) * kWidth + first + lane % 4 * 2;
#pragma unroll
      for (int j = 0; j < L::kColumns / 8; ++j) {
        *reinterpret_cast<float2*>(to + 8 * j) = {grad_k[j][2 * half], grad_k[j][2 * half + 1]};
        *reinterpret_cast<float2*>(to + 64 * kWidth + 8 * j) = {grad_v[j][2 * half],
                                                                grad_v[j][2 * half + 1]};
      }
      continue;
    }
    const int64_t at = bg * a.Nk + keys.first + key;
    store_row<T>(a.grad_k, at, a.D, first, grad_k, half, a.scale);
    store_row<T>(a.grad_v, at, a.Dv, first, grad_v, half, 1);
  }
}

}  // namespace

PortableParts block_sparse_portable_parts(const BlockSparseGpu& a, const BlockWalk& walk) {
  constexpr int64_t kShortest = 128, kTarget = 1024;
  const int64_t entries = walk.C * walk.cap;  // of a (b, g), at most
  const int64_t length = std::max(kShortest, (a.B * a.G * entries + kTarget - 1) / kTarget);
  PortableParts parts;
  parts.length = static_cast<int>(length);
  parts.cuts = static_cast<int>(entries > 0 ? (entries - 1) / length : 0);
  with_template(a, [&](auto, auto width) {
    parts.floats = a.B * a.G * parts.cuts * 2 * 128 * width;
    return cudaSuccess;
  });
  return parts;
}

cudaError_t block_sparse_portable_backward(const BlockSparseGpu& a, const BlockWalk& walk,
                                           const PortableParts& parts, cudaStream_t stream) {
  if (const cudaError_t error = block_sparse_delta(a, nullptr, stream)) return error;
  return with_template(a, [&](auto type, auto width) {
    using T = decltype(type);
    constexpr int kTiles = 2 + 2 * kStages<width>;
    const int64_t chunks = a.B * a.G * walk.C * head_tiles(walk, a);
    const int64_t tasks = a.B * a.G * (walk.P + parts.cuts), cuts = a.B * a.G * parts.cuts;
    cudaError_t error =
        launch(grad_q_kernel<T, width>, chunks, 1, kTiles * Tile<width>::kBytes, walk, a, stream);
    if (error != cudaSuccess) return error;
    error = launch(grad_kv_kernel<T, width>, tasks, Columns<width>::kParts, Columns<width>::kBytes,
                   walk, a, stream, parts);
    if (error != cudaSuccess || cuts == 0) return error;
    merge_kernel<T, width>
        <<<dim3(static_cast<unsigned>(cuts), 128 * width / 1024), 256, 0, stream>>>(walk, a, parts);
    return cudaGetLastError();
  });
}

}  // namespace sigma::kernels
