// lse[b,h,t] = log sum_i exp(scale q[b,h,t] . ck[b,g,i]) over the windows i < seen[t]: -inf where
// there is none, NaN where a score is.
//
// A thread block has 128 queries of a head, a warp 32 of them in registers (select_product.h), and
// walks the windows in tiles of 64: the next one is copied while this one is multiplied. A lane
// keeps, for each of its four rows, the maximum and the sum of the columns it sees; the four lanes
// of a row meet at the end.
#include "sigma/attention/kernels/select_product.h"

namespace sigma::kernels {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kQueries = 32 * kWarps;
constexpr int kTile = 64;  // windows

// A sum l 2^m.
struct Sum {
  float m = -3e38f, l = 0;  // below all scores; not -inf, which minus itself is NaN
  __device__ void add(float m2, float l2) {
    const float top = fmaxf(m, m2);
    l = fmaf(l, exp2_fast(m - top), l2 * exp2_fast(m2 - top));
    m = top;
  }
};

template <typename T, int kD>
__global__ void __launch_bounds__(kThreads, 3) lse_kernel(const SelectBlocksGpu a) {
  using Rows = RowTile<T, kD>;
  extern __shared__ __align__(16) uint4 memory[];  // two tiles
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int r = static_cast<int>(threadIdx.x) % 32 / 4, c = static_cast<int>(threadIdx.x) % 4;
  const int64_t first = (gridDim.x - 1 - blockIdx.x) * static_cast<int64_t>(kQueries);
  const int64_t head = blockIdx.y;  // b H + h
  const unsigned H = static_cast<unsigned>(a.H), G = static_cast<unsigned>(a.G);
  const int64_t pair = blockIdx.y / H * G + blockIdx.y % H / (H / G);
  const T* ck = static_cast<const T*>(a.ck) + pair * a.windows * a.D;
  const int64_t last = min(first + kQueries, a.N) - 1;
  const int64_t windows = a.seen ? a.seen[last] : a.windows;
  const int64_t least = a.seen ? a.seen[first] : a.windows;  // that all see

  const auto copy = [&](int64_t at, int buffer) {
    const Rows tile{memory + buffer * kTile * Rows::kUnits};
    for (int i = threadIdx.x; i < kTile * Rows::kUnits; i += kThreads) {
      const int row = i / Rows::kUnits;
      const bool there = at + row < windows;
      tile.copy(row, i % Rows::kUnits, ck + (there ? at + row : 0) * a.D, a.D, there);
    }
  };

  RowFragments<T, kD> q;
  const int64_t own = first + 32 * warp;  // the warp's queries
  if (windows > 0) copy(0, 0);
  q.load(static_cast<const T*>(a.q) + head * a.N * a.D, own, a.N, a.D);
  q.use();
  int64_t seen[4];
  Sum sum[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t t = own + 8 * i + r;
    seen[i] = t >= a.N ? 0 : a.seen ? a.seen[t] : a.windows;
  }
  const float factor = a.scale * kLog2e;
  for (int64_t at = 0; at < windows; at += kTile) {
    wait_copies();
    __syncthreads();  // this tile is there, and nobody reads the other one any more
    const int buffer = static_cast<int>(at / kTile % 2);
    if (at + kTile < windows) copy(at + kTile, 1 - buffer);
    const Rows tile{memory + buffer * kTile * Rows::kUnits};
    const auto walk = [&](auto at_edge) {
#pragma unroll(decltype(at_edge)::value ? 1 : 2)
      for (int j = 0; j < kTile; j += 16) {
        float S[2][2][4];
        q.multiply(S, tile, j);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float x[4];
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            x[k] = S[i / 2][k / 2][i % 2 * 2 + k % 2];
            if (decltype(at_edge)::value && at + j + k / 2 * 8 + 2 * c + k % 2 >= seen[i])
              x[k] = -INFINITY;
          }
          const float top = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])) * factor;
          const float m = fmaxf(sum[i].m, top);
          float l = sum[i].l * exp2_fast(sum[i].m - m);
#pragma unroll
          for (int k = 0; k < 4; ++k) l += exp2_fast(fmaf(x[k], factor, -m));
          sum[i].m = m;
          sum[i].l = l;
        }
      }
    };
    if (at + kTile > least) walk(std::true_type());
    else walk(std::false_type());
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    for (int step = 1; step < 4; step *= 2) {
      const float m2 = __shfl_xor_sync(0xffffffffu, sum[i].m, step);
      const float l2 = __shfl_xor_sync(0xffffffffu, sum[i].l, step);
      sum[i].add(m2, l2);
    }
    const int64_t t = own + 8 * i + r;
    if (c == 0 && t < a.N) a.lse[head * a.N + t] = (sum[i].m + log2f(sum[i].l)) / kLog2e;
  }
}

}  // namespace

cudaError_t window_lse_gpu(const SelectBlocksGpu& a, cudaStream_t stream) {
  if (a.B * a.H * a.N == 0) return cudaSuccess;
  if (!a.lse || a.B * a.H > 65535) return cudaErrorInvalidValue;
  return with_type(a, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int kD = width;
    constexpr int kBytes = 2 * kTile * kD * static_cast<int>(sizeof(T));
    const auto kernel = lse_kernel<T, kD>;
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
    if (error != cudaSuccess) return error;
    const dim3 grid(static_cast<unsigned>((a.N + kQueries - 1) / kQueries),
                    static_cast<unsigned>(a.B * a.H));
    kernel<<<grid, kThreads, kBytes, stream>>>(a);
    return cudaGetLastError();
  });
}

}  // namespace sigma::kernels
