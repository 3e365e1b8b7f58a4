// The forward of token rows whose tokens share few pieces: a warp a token, see
// block_sparse_hopper_tokens.h for who brings what, block_sparse_hopper_forward.h for the equations.
//
//   registers of a thread at D 128:  O 64, Q 32, S 32
#include "sigma/attention/kernels/block_sparse_hopper_forward.h"
#include "sigma/attention/kernels/block_sparse_hopper_tokens.h"

namespace sigma::kernels::hopper {
namespace {

constexpr int W = 12;                   // warps that multiply
constexpr int kThreads = 32 * W + 128;  // and a warpgroup, two of which merge and load
template <int D>
using Shared = TokenShared<D, W, 13>;

template <class T, int D>
__device__ inline void consume(Shared<D>& shared, const ForwardParams& p, int warp) {
  const int lane = threadIdx.x % 32;
  Operand q[D / 16] = {};
  float o[D / 2] = {}, m0 = kLow, m1 = kLow, l0 = 0, l1 = 0;
  for (int n = 0;; ++n) {
    const Entry& entry = shared.next(warp, n);
    if (entry.end < 0) {
      if (n > 0)
        store_rows<T>(p, o, m0, m1, l0, l1, shared.row[warp][lane / 4].x,
                      shared.row[warp][lane / 4 + 8].x, shared.item[warp].y, shared.item[warp].x,
                      int(p.a.Nq));
      if (entry.end == kStop) break;
      __syncwarp();
      if (lane == 0) shared.item[warp] = make_int2(entry.first, entry.chosen);
      const int position = entry.position;
      load_rows(q, shared.wait(position), shared.row[warp][lane % 16].x % 64);
      shared.done(position);
#pragma unroll
      for (int i = 0; i < D / 2; ++i) o[i] = 0;
      m0 = m1 = kLow, l0 = l1 = 0;
      continue;
    }
    const uint32_t k = shared.wait(entry.position);
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      float s[16];
      multiply_transposed<T, D>(s, q, k + half * 4096);
      if (half) shared.done(entry.position);
      const int2 row0 = shared.row[warp][lane / 4], row1 = shared.row[warp][lane / 4 + 8];
      if (entry.end & kMasked) {
        const auto rank = [&](int row) {
          const int query = min(shared.item[warp].x + row % p.w.tokens, int(p.a.Nq) - 1);
          return p.a.rank_q ? p.a.rank_q[query] : 0;
        };
        hide(s, p.a, shared.item[warp].y / int(p.a.H), entry.first + 32 * half,
             entry.end & ~kMasked, rank(row0.x), rank(row1.x));
      }
      uint32_t a[2][4];
      weights<T>(a, s, o, m0, m1, l0, l1, entry.chosen >> row0.y & 1, entry.chosen >> row1.y & 1,
                 p);
      multiply<T>(o, a, shared.wait(entry.position + 1) + half * 4096);
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
  auto& shared = *reinterpret_cast<Shared<D>*>(memory);
  const ForwardParams& p = params.forward;
  if (p.either && alike(p.w)) return;
  shared.start(params.rows);
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  if (warp < W) {
    more_registers<160>();
    consume<T, D>(shared, p, warp);
  } else {
    fewer_registers<32>();
    if (warp == W) merge(shared, p.w, params.rows);
    if (warp == W + 1) load<D>(shared, params.rows, {&p.q}, &p.k, &p.v);
  }
}

template <class T, int D>
cudaError_t launch(const BlockSparseGpu& a, const BlockWalk& w, bool either, cudaStream_t stream) {
  Params p{.rows = TokenRows(a, w, W)};
  const cudaError_t error = forward_params(p.forward, a, w, either);
  if (error != cudaSuccess) return error;
  return launch_tokens(forward_tokens_kernel<T, D>, p, p.rows.items, kThreads, sizeof(Shared<D>),
                       stream);
}

}  // namespace

cudaError_t forward_tokens(const BlockSparseGpu& a, const BlockWalk& w, bool either,
                           cudaStream_t stream) {
  return a.half ? launch<__half, 128>(a, w, either, stream)
                : launch<__nv_bfloat16, 128>(a, w, either, stream);
}

}  // namespace sigma::kernels::hopper
