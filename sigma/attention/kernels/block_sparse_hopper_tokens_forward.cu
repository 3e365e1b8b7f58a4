// The forward of token rows whose tokens share few pieces: block_sparse_hopper_tokens.h says who
// does what, block_sparse_hopper_forward.h has the equations.
//
// A piece is worked off in halves of 32 keys. Registers of a thread at D 128: O 64, Q 32, S 16.
#include "sigma/attention/kernels/block_sparse_hopper_forward.h"
#include "sigma/attention/kernels/block_sparse_hopper_tokens_producers.h"
#include "sigma/attention/kernels/mma.h"

namespace sigma::kernels::hopper {
namespace {

constexpr int kThreads = 32 * kTokenWarps + 128;  // and a warpgroup, of which two warps produce
constexpr int kHalf = 32 * 128;                   // bytes of a panel's 32 rows

// ---- products of a warp, with tiles as the copy engine leaves them (hopper.h) -------------------

// Operands A from the rows of a tile; `row`: the tile's, for row lane % 16 of the warp.
template <int steps>
__device__ inline void load_rows(uint32_t (&to)[steps][4], uint32_t tile, int row) {
  const uint32_t at = row * 128 + ((threadIdx.x % 32 / 16 ^ row % 8) << 4);
#pragma unroll
  for (int s = 0; s < steps; ++s) load_matrix(to[s], tile + s / 4 * 8192 + (at ^ s % 4 * 32));
}

// s = A tile^T of 2 n rows of the tile; s[4j ..]: columns (keys) 8j ..
template <class T, int steps, int n>
__device__ inline void multiply_transposed(float (&s)[n], const uint32_t (&a)[steps][4],
                                           uint32_t tile) {
  const int lane = threadIdx.x % 32;
  const uint32_t at = tile + (lane / 16 * 8 + lane % 8) * 128 + ((lane / 8 % 2 ^ lane % 8) << 4);
#pragma unroll
  for (int i = 0; i < n; ++i) s[i] = 0;
#pragma unroll
  for (int k = 0; k < steps; ++k) {
#pragma unroll
    for (int j = 0; j < n / 8; ++j) {
      uint32_t b[4];
      load_matrix(b, (at ^ k % 4 * 32) + k / 4 * 8192 + j * 2048);
      mma<T>(reinterpret_cast<float(&)[4]>(s[8 * j]), a[k], b[0], b[1]);
      mma<T>(reinterpret_cast<float(&)[4]>(s[8 * j + 4]), a[k], b[2], b[3]);
    }
  }
}

// o += A tile, summed over 16 steps rows of the tile; o[4j ..]: columns 8j ..
template <class T, int steps, int n>
__device__ inline void multiply(float (&o)[n], const uint32_t (&a)[steps][4], uint32_t tile) {
  const int lane = threadIdx.x % 32;
  const uint32_t at = tile + lane % 16 * 128 + ((lane / 16 ^ lane % 8) << 4);
#pragma unroll
  for (int k = 0; k < steps; ++k) {
#pragma unroll
    for (int j = 0; j < n / 8; ++j) {
      uint32_t b[4];
      load_matrix_transposed(b, (at ^ j % 4 * 32) + j / 4 * 8192 + k * 2048);
      mma<T>(reinterpret_cast<float(&)[4]>(o[8 * j]), a[k], b[0], b[1]);
      mma<T>(reinterpret_cast<float(&)[4]>(o[8 * j + 4]), a[k], b[2], b[3]);
    }
  }
}

// ---- the kernel ---------------------------------------------------------------------------------

template <class T, int D>
__device__ inline void consume(TokenShared<D>& shared, const ForwardParams& p, int warp) {
  const int lane = threadIdx.x % 32;
  uint32_t q[D / 16][4] = {};
  float o[D / 2] = {}, m0 = kLow, m1 = kLow, l0 = 0, l1 = 0;
  for (int n = 0;; ++n) {
    const WarpEntry& entry = shared.next(warp, n);
    if (entry.end < 0) {
      if (n > 0)
        store_rows<T>(p, o, m0, m1, l0, l1, shared.row[warp][lane / 4].x,
                      shared.row[warp][lane / 4 + 8].x, shared.item[warp].y, shared.item[warp].x,
                      int(p.a.Nq));
      if (entry.end == kStop) break;
      __syncwarp();
      if (lane == 0) shared.item[warp] = make_int2(entry.first, entry.chosen);
      load_rows(q, shared.wait(entry.position), shared.row[warp][lane % 16].x % 64);
      shared.done(entry.position);
#pragma unroll
      for (int i = 0; i < D / 2; ++i) o[i] = 0;
      m0 = m1 = kLow, l0 = l1 = 0;
      continue;
    }
    const uint32_t k = shared.wait(entry.position);
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      float s[16];
      multiply_transposed<T>(s, q, k + half * kHalf);
      if (half) shared.done(entry.position);
      const int2 row0 = shared.row[warp][lane / 4], row1 = shared.row[warp][lane / 4 + 8];
      if (entry.end & kMasked) {
        const auto rank = [&](int row) {
          const int query = min(shared.item[warp].x + row % p.w.tokens, int(p.a.Nq) - 1);
          return p.a.rank_q ? p.a.rank_q[query] : 0;
        };
        hide(s, p, shared.item[warp].y / int(p.a.H), entry.first + 32 * half, entry.end & ~kMasked,
             rank(row0.x), rank(row1.x));
      }
      uint32_t a[2][4];
      weights<T>(a, s, o, m0, m1, l0, l1, entry.chosen >> row0.y & 1, entry.chosen >> row1.y & 1,
                 p);
      multiply<T>(o, a, shared.wait(entry.position + 1) + half * kHalf);
    }
    shared.done(entry.position + 1);
  }
}

struct Params {
  ForwardParams forward;
  TokenRows rows;
};

template <class T, int D>
__global__ void __launch_bounds__(kThreads, 1)
    forward_tokens_kernel(const __grid_constant__ Params params) {
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<TokenShared<D>*>(memory);
  const ForwardParams& p = params.forward;
  if (p.either && alike(p.w)) return;
  shared.start(params.rows, p.w);
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  if (warp < kTokenWarps) {
    more_registers<160>();
    consume<T, D>(shared, p, warp);
  } else {
    fewer_registers<32>();
    if (warp == kTokenWarps) merge(shared, p.w, params.rows);
    if (warp == kTokenWarps + 1) load(shared, p.w, &p.q, &p.k, &p.v);
  }
}

template <class T, int D>
cudaError_t launch(const ForwardParams& forward, cudaStream_t stream) {
  const Params p{.forward = forward, .rows = TokenRows(forward.w)};
  const auto kernel = forward_tokens_kernel<T, D>;
  const int bytes = sizeof(TokenShared<D>);
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  int device = 0, at_once = 0;
  if (error == cudaSuccess) error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&at_once, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const int64_t items = p.rows.items;
  if (items > 0)
    kernel<<<unsigned(items < at_once ? items : at_once), kThreads, bytes, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace

cudaError_t forward_tokens(const ForwardParams& p, cudaStream_t stream) {
  return p.a.half ? launch<__half, 128>(p, stream) : launch<__nv_bfloat16, 128>(p, stream);
}

}  // namespace sigma::kernels::hopper
