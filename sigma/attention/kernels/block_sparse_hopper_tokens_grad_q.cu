// grad_q of token rows whose tokens share few pieces: a warp a token, see
// block_sparse_hopper_tokens.h for who brings what, block_sparse_hopper_grad.h for the equations.
//
// A piece is worked off in halves of 32 keys: S, dP, then dQ += dS K. Registers of a thread at D 128:
// dQ 64, Q 32, S 16, dP 16, dS 8. There is no room for dO: its operands lie in shared memory, as the
// warp's lanes left them.
#include "sigma/attention/kernels/block_sparse_hopper_grad.h"
#include "sigma/attention/kernels/block_sparse_hopper_hide.h"
#include "sigma/attention/kernels/block_sparse_hopper_tokens.h"

namespace sigma::kernels::hopper {
namespace {

constexpr float kLog2e = 1.4426950408889634f;
constexpr int W = 12;                   // warps that multiply
constexpr int kThreads = 32 * W + 128;  // and a warpgroup, two of which merge and load

struct Params {
  CUtensorMap q, grad_out, k, v;
  BlockSparseGpu a;
  BlockWalk w;
  TokenRows rows;
  const float2* stats;
  float by;  // scale log2 e
};

template <int D>
struct Shared : TokenShared<D, W, 10> {
  Operand grad_out[W][D / 16][32];  // by lane
  float2 stats[W][16];              // of the rows: lse log2 e, delta
};

template <int D>
struct Parked {
  const Operand (&operand)[D / 16][32];
  __device__ Operand operator[](int k) const {
    const int4 x = *reinterpret_cast<const int4*>(&operand[k][threadIdx.x % 32]);
    return {uint32_t(x.x), uint32_t(x.y), uint32_t(x.z), uint32_t(x.w)};
  }
};

template <class T, int D>
__device__ inline void store(const Params& p, const float (&dq)[D / 2], int row, int half,
                             int2 item) {
  const int h = row / p.rows.tokens, query = item.x + row % p.rows.tokens;
  if (h >= p.rows.heads || query >= p.a.Nq) return;
  const int64_t at = int64_t(item.y + h) * p.a.Nq + query;
  uint32_t* to = static_cast<uint32_t*>(p.a.grad_q) + at * (D / 2) + threadIdx.x % 4;
#pragma unroll
  for (int j = 0; j < D / 8; ++j)
    to[4 * j] = pack(T(), dq[4 * j + 2 * half] * p.a.scale, dq[4 * j + 2 * half + 1] * p.a.scale);
}

template <class T, int D>
__device__ inline void consume(Shared<D>& shared, const Params& p, int warp) {
  const int lane = threadIdx.x % 32;
  Operand q[D / 16] = {};
  float dq[D / 2] = {};
  for (int n = 0;; ++n) {
    const Entry& entry = shared.next(warp, n);
    if (entry.end < 0) {
      if (n > 0) {
        store<T, D>(p, dq, shared.row[warp][lane / 4].x, 0, shared.item[warp]);
        store<T, D>(p, dq, shared.row[warp][lane / 4 + 8].x, 1, shared.item[warp]);
      }
      if (entry.end == kStop) break;
      const int2 item = make_int2(entry.first, entry.chosen);
      __syncwarp();
      if (lane == 0) shared.item[warp] = item;
      const int position = entry.position, row = shared.row[warp][lane % 16].x;
      load_rows(q, shared.wait(position + 1), row % 64);
#pragma unroll
      for (int k = 0; k < D / 16; ++k) shared.grad_out[warp][k][lane] = q[k];
      load_rows(q, shared.wait(position), row % 64);
      const int h = row / p.rows.tokens, query = item.x + row % p.rows.tokens;
      const bool real = h < p.rows.heads && query < p.a.Nq;
      if (lane < 16)
        shared.stats[warp][lane] =
            real ? p.stats[int64_t(item.y + h) * p.a.Nq + query] : make_float2(INFINITY, 0);
      shared.done(position);
      shared.done(position + 1);
#pragma unroll
      for (int i = 0; i < D / 2; ++i) dq[i] = 0;
      continue;
    }
    const uint32_t k = shared.wait(entry.position);
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      float s[16], dp[16];
      const int2 row0 = shared.row[warp][lane / 4], row1 = shared.row[warp][lane / 4 + 8];
      multiply_transposed<T, D>(s, q, k + half * 4096);
      if (entry.end & kMasked) {
        const auto rank = [&](int row) {
          const int query = min(shared.item[warp].x + row % p.rows.tokens, int(p.a.Nq) - 1);
          return p.a.rank_q ? p.a.rank_q[query] : 0;
        };
        hide(s, p.a, shared.item[warp].y / int(p.a.H), entry.first + 32 * half,
             entry.end & ~kMasked, rank(row0.x), rank(row1.x));
      }
      const float2 stats0 = shared.stats[warp][lane / 4], stats1 = shared.stats[warp][lane / 4 + 8];
      const float lse0 = entry.chosen >> row0.y & 1 ? stats0.x : INFINITY;
      const float lse1 = entry.chosen >> row1.y & 1 ? stats1.x : INFINITY;
#pragma unroll
      for (int i = 0; i < 16; ++i) s[i] = exp2_fast(fmaf(s[i], p.by, i % 4 < 2 ? -lse0 : -lse1));
      const uint32_t v = shared.wait(entry.position + 1);
      multiply_transposed<T, D>(dp, Parked<D>{shared.grad_out[warp]}, v + half * 4096);
      if (half) shared.done(entry.position + 1);
#pragma unroll
      for (int i = 0; i < 16; ++i) s[i] *= dp[i] - (i % 4 < 2 ? stats0.y : stats1.y);
      uint32_t ds[2][4];
      pack_operand<T>(ds[0], s, 0);
      pack_operand<T>(ds[1], s, 1);
      multiply<T>(dq, ds, k + half * 4096);
    }
    shared.done(entry.position);
  }
}

template <class T, int D>
__global__ void __launch_bounds__(kThreads, 1)
    grad_q_tokens_kernel(const __grid_constant__ Params p) {
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<Shared<D>*>(memory);
  shared.start(p.rows);
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  if (warp < W) {
    more_registers<160>();
    consume<T, D>(shared, p, warp);
  } else {
    fewer_registers<32>();
    if (warp == W) merge(shared, p.w, p.rows);
    if (warp == W + 1) load<D>(shared, p.rows, {&p.q, &p.grad_out}, &p.k, &p.v);
  }
}

template <class T, int D>
cudaError_t launch(const BlockSparseGpu& a, const BlockWalk& w, const GradWork& work,
                   cudaStream_t stream) {
  Params p{.a = a, .w = w, .rows = TokenRows(a, w, W), .stats = work.stats, .by = a.scale * kLog2e};
  cudaError_t error = tensor_map(&p.q, a.q, a.half, D, a.Nq, a.B * a.H, w.tokens, w.heads);
  if (error == cudaSuccess)
    error = tensor_map(&p.grad_out, a.grad_out, a.half, D, a.Nq, a.B * a.H, w.tokens, w.heads);
  if (a.Nk == 0) p.k = p.v = p.q;  // never read
  if (error == cudaSuccess && a.Nk > 0)
    error = tensor_map(&p.k, a.k, a.half, D, a.Nk, a.B * a.G, kPiece, 1);
  if (error == cudaSuccess && a.Nk > 0)
    error = tensor_map(&p.v, a.v, a.half, D, a.Nk, a.B * a.G, kPiece, 1);
  if (error != cudaSuccess) return error;
  return launch_tokens(grad_q_tokens_kernel<T, D>, p, p.rows.items, kThreads, sizeof(Shared<D>),
                       stream);
}

}  // namespace

cudaError_t grad_q_tokens(const BlockSparseGpu& a, const BlockWalk& w, const GradWork& work,
                          cudaStream_t stream) {
  if (a.D == 64)
    return a.half ? launch<__half, 64>(a, w, work, stream)
                  : launch<__nv_bfloat16, 64>(a, w, work, stream);
  return a.half ? launch<__half, 128>(a, w, work, stream)
                : launch<__nv_bfloat16, 128>(a, w, work, stream);
}

}  // namespace sigma::kernels::hopper
