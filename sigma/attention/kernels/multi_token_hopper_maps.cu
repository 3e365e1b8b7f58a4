// Score maps of the backward of multi-token attention by wider heads (multi_token_hopper.h):
//
//   P[i,j] = exp(S'[i,j] - lse[i])            S'[i,j] = scale sum_r q_{i - a_r} . khat_r[j]
//   dS[i,j] = P[i,j] (dP[i,j] - delta[i])     dP[i,j] = sum_r g_{i + a_r} . vhat_r[j]
//
// with g the gradient of the output. A CTA keeps the wide keys and values of 64 keys in shared memory
// (up to 12 panels of 8 KB) and goes through the queries, or a share of them. Two warpgroups take
// every other tile of 128 queries. Products are turned round, keys by queries (64 x 128): A a panel
// of wide keys, B a window of the queries (hopper_windows.h). P is made while dP is being multiplied.
// The maps take the place of the tile's queries and gradients in shared memory, turned back by
// stmatrix; a warp of its own sends them off and frees the slot.
#include <algorithm>
#include <cmath>

#include "sigma/attention/kernels/hopper_windows.h"
#include "sigma/attention/kernels/multi_token_hopper.h"

namespace sigma::kernels {
namespace {

using namespace hopper;

constexpr int kThreads = 384;  // a producer and two consumer warpgroups
constexpr int kSlots = 3;
constexpr int kRows = 136;  // 128 queries and up to 8 rows for the steps
constexpr int kPanel = 64 * 128;

struct alignas(1024) Shared {
  struct {
    char q[kRows * 128];  // then P
    char g[kRows * 128];  // then dS
  } slot[kSlots];
  char k[kMaxSteps1D][kPanel];
  char v[kMaxSteps1D][kPanel];
  float lse[2][2][128],
      delta[2][2][128];  // of a warpgroup's tile and the one before; lse in base 2
  uint64_t full[kSlots], made[kSlots], empty[kSlots], wide;
};

// The tiles of queries of a CTA.
struct Tiles {
  int first, count;
};

__device__ void produce(Shared& s, const CUtensorMap* q, const CUtensorMap* g, const CUtensorMap* k,
                        const CUtensorMap* v, const WideAttentionGrad& a, const Tiles& tiles,
                        int key, int head) {
  barrier_expect(&s.wide, (a.before + a.after) * kPanel);
  for (int r = 0; r < a.before; ++r) tma_load(s.k[r], k, &s.wide, 0, key, head * a.before + r);
  for (int r = 0; r < a.after; ++r) tma_load(s.v[r], v, &s.wide, 0, key, head * a.after + r);
  for (int t = 0; t < tiles.count; ++t) {
    const int at = t % kSlots, row = (tiles.first + t) * 128;
    barrier_wait(&s.empty[at], (t / kSlots & 1) ^ 1);
    barrier_expect(&s.full[at], 2 * kRows * 128);
    tma_load(s.slot[at].q, q, &s.full[at], 0, row - a.before_first - (a.before - 1), head);
    tma_load(s.slot[at].g, g, &s.full[at], 0, row + a.after_first, head);
  }
}

__device__ void send_off(Shared& s, const CUtensorMap* prob, const CUtensorMap* grad,
                         const WideAttentionGrad& a, const Tiles& tiles, int key, int head) {
  for (int t = 0; t < tiles.count; ++t) {
    const int at = t % kSlots, row = (tiles.first + t) * 128;
    barrier_wait(&s.made[at], t / kSlots & 1);
    tma_store(prob, s.slot[at].q, key - int(a.first_key), row, head);
    tma_store(grad, s.slot[at].g, key - int(a.first_key), row, head);
    stores_commit();
    stores_read();
    barrier_arrive(&s.empty[at]);
  }
}

// Columns 16 s .. 16 s + 15 (queries) of the warp's 16 rows (keys), to rows of queries.
__device__ inline void store_turned(uint32_t tile, int s, const uint32_t (&a)[4]) {
  const int lane = threadIdx.x % 32, row = 16 * s + lane / 16 * 8 + lane % 8;
  const int unit = threadIdx.x % 128 / 32 * 2 + lane / 8 % 2;
  store_matrices_trans(tile + row * 128 + ((unit ^ (row % 8)) << 4), a[0], a[1], a[2], a[3]);
}

template <class T, int after>
__device__ void consume(Shared& s, const WideAttentionGrad& a, const Tiles& tiles, int key,
                        int head, int group) {
  const int thread = threadIdx.x % 128, lane = thread % 32;
  const uint32_t keys = shared_address(s.k), values = shared_address(s.v);
  const float scale = a.scale * 1.44269504f;
  // Of the thread's two rows (keys), those that exist.
  const int r0 = key + thread / 32 * 16 + lane / 4;
  const bool there[2] = {r0 < a.N, r0 + 8 < a.N};
  barrier_wait(&s.wide, 0);
  for (int t = group; t < tiles.count; t += 2) {
    const int at = t % kSlots, old = t / 2 % 2;
    const uint32_t q = shared_address(s.slot[at].q), g = shared_address(s.slot[at].g);
    const int64_t i = int64_t(tiles.first + t) * 128 + thread;
    s.lse[group][old][thread] = i < a.N ? a.lse[head * a.N + i] * 1.44269504f : INFINITY;
    s.delta[group][old][thread] = i < a.N ? a.delta[head * a.N + i] : 0;
    barrier_wait(&s.full[at], t / kSlots & 1);
    float S[64], G[64];
    pin(S);
    pin(G);
    for (int r = 0; r < a.before; ++r) {
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k)
        Mma<T, 128, 0, 0>::run(S, k_major(keys + r * kPanel, k), window_k(q, a.before - 1 - r, k),
                               (r | k) != 0);
      wgmma_commit();
      wgmma_wait<1>();
    }
    wgmma_fence();
#pragma unroll
    for (int r = 0; r < after; ++r)
#pragma unroll
      for (int k = 0; k < 4; ++k)
        Mma<T, 128, 0, 0>::run(G, k_major(values + r * kPanel, k), window_k(g, r, k), (r | k) != 0);
    wgmma_commit();
    wgmma_wait<1>();
    pin(S);
    meet(1 + group, 128);  // all warps have read the queries, and s.lse, s.delta are there
    // Column c of the thread: queries c / 2 * 8 + 2 (lane % 4) + c % 2; its rows are keys.
    uint32_t packed[4];
#pragma unroll
    for (int k = 0; k < 8; ++k) {
#pragma unroll
      for (int e = 8 * k; e < 8 * k + 8; e += 4) {
        const float2 lse =
            *reinterpret_cast<const float2*>(&s.lse[group][old][e / 4 * 8 + lane % 4 * 2]);
#pragma unroll
        for (int j = 0; j < 4; ++j)
          S[e + j] = there[j / 2] ? exp2_fast(fmaf(S[e + j], scale, j % 2 ? -lse.y : -lse.x)) : 0;
      }
      pack_operand<T>(packed, S, k);
      store_turned(q, k, packed);
    }
    wgmma_wait<0>();
    pin(G);
    meet(1 + group, 128);  // all warps have read the gradients
#pragma unroll
    for (int k = 0; k < 8; ++k) {
#pragma unroll
      for (int e = 8 * k; e < 8 * k + 8; e += 4) {
        const float2 delta =
            *reinterpret_cast<const float2*>(&s.delta[group][old][e / 4 * 8 + lane % 4 * 2]);
#pragma unroll
        for (int j = 0; j < 4; ++j) G[e + j] = S[e + j] * (G[e + j] - (j % 2 ? delta.y : delta.x));
      }
      pack_operand<T>(packed, G, k);
      store_turned(g, k, packed);
    }
    fence_async();
    barrier_arrive(&s.made[at]);
  }
}

// Grid (keys by 64, heads, shares of the queries).
template <class T, int after>
__global__ void __launch_bounds__(kThreads, 1)
    maps_kernel(const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap g,
                const __grid_constant__ CUtensorMap k, const __grid_constant__ CUtensorMap v,
                const __grid_constant__ CUtensorMap prob, const __grid_constant__ CUtensorMap grad,
                const WideAttentionGrad a) {
  extern __shared__ __align__(1024) char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory);
  const int key = int(a.first_key) + blockIdx.x * 64, head = blockIdx.y, group = threadIdx.x / 128;
  const int all = int((a.N + 127) / 128), share = (all + gridDim.z - 1) / gridDim.z;
  const int tile = blockIdx.z * share;
  const Tiles tiles{tile, min(share, all - tile)};
  if (threadIdx.x == 0) {
    for (int i = 0; i < kSlots; ++i) {
      barrier_init(&s.full[i], 1);
      barrier_init(&s.made[i], 128);
      barrier_init(&s.empty[i], 1);
    }
    barrier_init(&s.wide, 1);
    barrier_init_fence();
  }
  __syncthreads();
  if (group == 0) {
    fewer_registers<40>();
    if (threadIdx.x == 0) produce(s, &q, &g, &k, &v, a, tiles, key, head);
    if (threadIdx.x == 32) send_off(s, &prob, &grad, a, tiles, key, head);
  } else {
    more_registers<232>();
    consume<T, after>(s, a, tiles, key, head, group - 1);
  }
}

template <class T, int after>
cudaError_t launch(const WideAttentionGrad& a, cudaStream_t stream) {
  const auto kernel = maps_kernel<T, after>;
  CUtensorMap q, g, k, v, prob, grad;
  const int64_t columns = map_columns(a.keys);
  const auto make = [&](CUtensorMap* map, const void* data, int64_t D, int64_t outer, int rows) {
    return tensor_map(map, data, a.half, D, a.N, outer, rows, 1);
  };
  for (const cudaError_t error :
       {make(&q, a.q, 64, a.heads, kRows), make(&g, a.grad_out, 64, a.heads, kRows),
        make(&k, a.khat, 64, a.heads * a.before, 64), make(&v, a.vhat, 64, a.heads * a.after, 64),
        make(&prob, a.prob, columns, a.heads, 128), make(&grad, a.grad, columns, a.heads, 128),
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared))})
    if (error != cudaSuccess) return error;
  // Few keys: the queries are shared out, 16 tiles or more a CTA.
  const int64_t ctas = (a.keys + 63) / 64 * a.heads, tiles = (a.N + 127) / 128;
  const int64_t shares = std::clamp((512 + ctas - 1) / ctas, int64_t{1}, (tiles + 15) / 16);
  const dim3 grid(unsigned((a.keys + 63) / 64), unsigned(a.heads), unsigned(shares));
  kernel<<<grid, kThreads, sizeof(Shared), stream>>>(q, g, k, v, prob, grad, a);
  return cudaGetLastError();
}

template <class T>
cudaError_t by_steps(const WideAttentionGrad& a, cudaStream_t stream) {
  if (a.after == 2) return launch<T, 2>(a, stream);
  if (a.after == 4) return launch<T, 4>(a, stream);
  return launch<T, 6>(a, stream);
}

}  // namespace

cudaError_t wide_attention_maps(const WideAttentionGrad& a, cudaStream_t stream) {
  return a.half ? by_steps<__half>(a, stream) : by_steps<__nv_bfloat16>(a, stream);
}

}  // namespace sigma::kernels
