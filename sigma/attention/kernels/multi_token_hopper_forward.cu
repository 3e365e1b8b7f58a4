// The forward of multi-token attention by wider heads (multi_token_hopper.h), 128 queries a cluster.
//
// The outputs of 128 queries, up to 6 x 64 columns in float32, are 192 KB: the registers of two
// multiprocessors. So a cluster of two CTAs shares them. CTA c has the columns of the value steps
// c R .. c R + R - 1 (R <= 3), and scores the keys of every other tile of 128:
//
//   S' = Q khat^T   128 queries x its own tile, over all query steps
//   m  = the rows' maxima; each CTA sends its own to the other and takes the larger
//   P  = exp(S' - m), kept in registers, and sent to the other as bf16 / f16
//   O  = O exp(m_old - m) + P vhat_R (own tile) + P_other vhat_R (the other's tile)
//
// Two warpgroups have 64 rows each; while one takes its exponentials, the other multiplies. Both
// CTAs see the same m, so the two P fit together. A warpgroup talks with the warpgroup of the same
// rows only: the maxima (256 bytes) and P (16 KB), each with its own barrier. No message can
// overtake the reading of the last one, since they alternate:
//   maxima of step t are sent after the other's P of t - 1 was read; P of t is sent after the other's
//   maxima of t have come, so after the other has read P of t - 1 and has taken this CTA's copy.
//
// The queries' steps are windows of one tile of 128 + steps - 1 rows (hopper_windows.h). Khat and
// vhat come as panels of 128 keys x 64 (16 KB) through one ring of slots in the order of their use.
#include <cmath>

#include "sigma/attention/kernels/hopper_windows.h"
#include "sigma/attention/kernels/multi_token_hopper.h"

namespace sigma::kernels {
namespace {

using namespace hopper;

constexpr int kThreads = 384;  // a producer and two consumer warpgroups
constexpr int kSlots = 9;
constexpr int kPanelBytes = 128 * 128;
constexpr int kQueryRows = 136;           // 128 and up to 8 rows for the steps
constexpr int kProbBytes = 64 * 128 * 2;  // P of 64 rows and 128 keys: two panels of 64 keys

struct alignas(1024) Shared {
  char ring[kSlots][kPanelBytes];
  char q[kQueryRows * 128];
  char sent[2][kProbBytes];  // of each warpgroup; in the end its outputs
  char got[2][kProbBytes];
  float maxima[2][64];  // got
  uint64_t full[kSlots], empty[kSlots], query, maxima_here[2], prob_here[2];
};

struct Slot {
  int at = 0;
  uint32_t parity = 0;
  template <int slots>
  __device__ void next() {
    if (++at == slots) at = 0, parity ^= 1;
  }
};

template <int R>
__device__ void produce(Shared& s, const CUtensorMap* q, const CUtensorMap* k, const CUtensorMap* v,
                        const WideAttention& a, int row, int head, int rank) {
  constexpr int slots = kSlots / R * R;
  barrier_expect(&s.query, sizeof(s.q));
  tma_load(s.q, q, &s.query, 0, row - a.before_first - (a.before - 1), head);
  const int pairs = int((a.N + 255) / 256);
  Slot slot;
  const auto put = [&](const CUtensorMap* map, int key, int outer, bool some) {
    barrier_wait(&s.empty[slot.at], slot.parity ^ 1);
    if (some) {
      barrier_expect(&s.full[slot.at], kPanelBytes);
      tma_load(s.ring[slot.at], map, &s.full[slot.at], 0, key, outer);
    } else {
      barrier_arrive(&s.full[slot.at]);
    }
    slot.next<slots>();
  };
  for (int t = 0; t < pairs; ++t) {
    const int own = (2 * t + rank) * 128, other = (2 * t + 1 - rank) * 128;
    for (int r = 0; r < (a.before + R - 1) / R * R; ++r)  // so that values start at multiples of R
      put(k, own, head * a.before + r, r < a.before);
    for (int r = 0; r < R; ++r) put(v, own, head * 2 * R + rank * R + r, true);
    for (int r = 0; r < R; ++r) put(v, other, head * 2 * R + rank * R + r, true);
  }
}

// A warp's part of a tile of 64 rows (panels of 64 columns) from operands A of 16 columns.
__device__ inline void store_operand(uint32_t tile, int s, const uint32_t (&a)[4]) {
  const int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane % 16;
  const int unit = s % 4 * 2 + lane / 16;
  store_matrices(tile + s / 4 * 8192 + row * 128 + ((unit ^ (row % 8)) << 4), a[0], a[1], a[2],
                 a[3]);
}

__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

template <class T, int R>
__device__ void consume(Shared& s, const CUtensorMap* y, const WideAttention& a, int row, int head,
                        int rank, int group) {
  constexpr int slots = kSlots / R * R;
  const int pairs = int((a.N + 255) / 256), thread = threadIdx.x % 128, lane = thread % 32;
  const int r0 = thread / 32 * 16 + lane / 4;  // the thread's rows: r0, r0 + 8
  const uint32_t ring = shared_address(s.ring), queries = shared_address(s.q);
  const uint32_t sent = shared_address(s.sent[group]), got = shared_address(s.got[group]);
  const uint32_t there = address_in(s.maxima[group], 1 - rank);
  const uint32_t maxima_there = address_in(&s.maxima_here[group], 1 - rank);
  const uint32_t got_there = address_in(s.got[group], 1 - rank);
  const uint32_t prob_there = address_in(&s.prob_here[group], 1 - rank);
  const float scale = a.scale * 1.44269504f;
  // One float of each row to the other CTA, and its own in return.
  const auto exchange = [&](float(&x)[2], uint32_t parity) {
    if (thread == 0) barrier_expect(&s.maxima_here[group], 64 * 4);
    if (lane % 4 == 0) {
      send(there + r0 * 4, x[0], maxima_there);
      send(there + (r0 + 8) * 4, x[1], maxima_there);
    }
    barrier_wait(&s.maxima_here[group], parity);
    x[0] = s.maxima[group][r0];
    x[1] = s.maxima[group][r0 + 8];
  };
  const auto release = [&](int slot) {
    if (thread == 0) barrier_arrive(&s.empty[slot]);
  };

  float O[32 * R];
#pragma unroll
  for (int i = 0; i < 32 * R; ++i) O[i] = 0;
  float m[2] = {-INFINITY, -INFINITY}, l[2] = {0, 0};
  Slot slot;
  barrier_wait(&s.query, 0);
  for (int t = 0; t < pairs; ++t) {
    float S[64];
    pin(S);
    for (int r = 0; r < (a.before + R - 1) / R * R; ++r) {
      barrier_wait(&s.full[slot.at], slot.parity);
      if (r < a.before) {
        const uint32_t keys = ring + slot.at * kPanelBytes;
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; ++k)
          Mma<T, 128, 0, 0>::run(S, window_k(queries, group * 64 + a.before - 1 - r, k),
                                 k_major(keys, k), (r | k) != 0);
        wgmma_commit();
      }
      // The step before this one has been multiplied.
      wgmma_wait<1>();
      if (r > 0) release(slot.at == 0 ? slots - 1 : slot.at - 1);
      slot.next<slots>();
    }
    wgmma_wait<0>();
    pin(S);
    release(slot.at == 0 ? slots - 1 : slot.at - 1);

    const int keys = int(a.N) - (2 * t + rank) * 128;  // left
    if (keys < 128) {
#pragma unroll
      for (int i = 0; i < 64; ++i)
        if (i / 4 * 8 + lane % 4 * 2 + i % 2 >= keys) S[i] = -INFINITY;
    }
    float top[2] = {S[0], S[2]};
#pragma unroll
    for (int i = 0; i < 64; ++i) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], S[i]);
    top[0] = quad_max(top[0]);
    top[1] = quad_max(top[1]);
    float others[2] = {top[0], top[1]};
    exchange(others, t & 1);
    float shift[2], alpha[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float now = fmaxf(m[e], fmaxf(top[e], others[e]));  // finite: tile 2t has a key
      alpha[e] = exp2_fast((m[e] - now) * scale);
      m[e] = now;
      shift[e] = now * scale;
      l[e] *= alpha[e];
    }
    uint32_t P[8][4];
#pragma unroll
    for (int k = 0; k < 8; ++k) {
#pragma unroll
      for (int i = 8 * k; i < 8 * k + 8; ++i) {
        S[i] = exp2_fast(fmaf(S[i], scale, -shift[i / 2 % 2]));
        l[i / 2 % 2] += S[i];
      }
      pack_operand<T>(P[k], S, k);
      store_operand(sent, k, P[k]);
    }
    fence_async();
    meet(1 + group, 128);
    if (thread == 0) {
      barrier_expect(&s.prob_here[group], kProbBytes);
      bulk_send(got_there, s.sent[group], kProbBytes, prob_there);
    }

#pragma unroll
    for (int i = 0; i < 32 * R; ++i) O[i] *= alpha[i / 2 % 2];
    // Both tiles: R slots of values each, one behind another.
    const auto multiply = [&](const auto& operand) {
      const uint32_t values = ring + slot.at * kPanelBytes;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        barrier_wait(&s.full[slot.at], slot.parity);
        slot.next<slots>();
      }
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 8; ++k)
        Mma<T, 64 * R, 0, 1>::run(O, operand(k), mn_major(values, k, 128), 1);
      wgmma_commit();
    };
    const int own = slot.at;
    pin(O);
    multiply([&](int k) -> const uint32_t(&)[4] { return P[k]; });
    const int other = slot.at;
    barrier_wait(&s.prob_here[group], t & 1);
    multiply([&](int k) { return k_major(got, k); });
    wgmma_wait<1>();
    for (int r = 0; r < R; ++r) release(own + r);
    wgmma_wait<0>();
    pin(O);
    for (int r = 0; r < R; ++r) release(other + r);
  }

  l[0] = quad_sum(l[0]);
  l[1] = quad_sum(l[1]);
  float others[2] = {l[0], l[1]};
  exchange(others, pairs & 1);
  float inverse[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const float sum = l[e] + others[e];
    inverse[e] = 1 / sum;
    const int64_t i = int64_t(row) + group * 64 + r0 + 8 * e;
    if (rank == 0 && lane % 4 == 0 && i < a.N) a.lse[head * a.N + i] = m[e] * a.scale + logf(sum);
  }
#pragma unroll
  for (int i = 0; i < 32 * R; ++i) O[i] *= inverse[i / 2 % 2];
  // Outputs leave through the buffers of P: panels 0 and 1, and 2.
#pragma unroll
  for (int k = 0; k < 4 * R; ++k) {
    uint32_t p[4];
    pack_operand<T>(p, O, k);
    if (k < 8) store_operand(sent, k, p);
    else store_operand(got, k - 8, p);
  }
  fence_async();
  meet(1 + group, 128);
  if (thread == 0) {
    for (int r = 0; r < R; ++r)
      tma_store(y, r < 2 ? s.sent[group] + r * 8192 : s.got[group], 0, row + group * 64,
                head * 2 * R + rank * R + r);
    stores_commit();
    stores_read();
  }
}

template <class T, int R>
__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kThreads, 1)
    forward_kernel(const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap k,
                   const __grid_constant__ CUtensorMap v, const __grid_constant__ CUtensorMap y,
                   const WideAttention a) {
  extern __shared__ __align__(1024) char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory);
  const int rank = int(cluster_rank()), row = blockIdx.x / 2 * 128, head = blockIdx.y;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kSlots; ++i) {
      barrier_init(&s.full[i], 1);
      barrier_init(&s.empty[i], 2);
    }
    barrier_init(&s.query, 1);
    for (int g = 0; g < 2; ++g) {
      barrier_init(&s.maxima_here[g], 1);
      barrier_init(&s.prob_here[g], 1);
    }
    barrier_init_fence();
  }
  cluster_meet();  // the other CTA's barriers stand before a message goes there
  const int group = threadIdx.x / 128;
  if (group == 0) {
    fewer_registers<40>();
    if (threadIdx.x == 0) produce<R>(s, &q, &k, &v, a, row, head, rank);
    __syncwarp();
  } else {
    more_registers<232>();
    consume<T, R>(s, &y, a, row, head, rank, group - 1);
  }
  cluster_meet();  // no CTA ends while the other may still reach into it
}

template <class T, int R>
cudaError_t launch(const WideAttention& a, cudaStream_t stream) {
  CUtensorMap q, k, v, y;
  cudaError_t error = tensor_map(&q, a.q, a.half, 64, a.N, a.heads, kQueryRows, 1);
  if (error == cudaSuccess)
    error = tensor_map(&k, a.khat, a.half, 64, a.N, a.heads * a.before, 128, 1);
  if (error == cudaSuccess)
    error = tensor_map(&v, a.vhat, a.half, 64, a.N, a.heads * 2 * R, 128, 1);
  if (error == cudaSuccess) error = tensor_map(&y, a.y, a.half, 64, a.N, a.heads * 2 * R, 64, 1);
  if (error != cudaSuccess) return error;
  const auto kernel = forward_kernel<T, R>;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared));
  if (error != cudaSuccess) return error;
  const dim3 grid(unsigned((a.N + 127) / 128 * 2), unsigned(a.heads));
  kernel<<<grid, kThreads, sizeof(Shared), stream>>>(q, k, v, y, a);
  return cudaGetLastError();
}

template <int R>
cudaError_t of_type(const WideAttention& a, cudaStream_t stream) {
  return a.half ? launch<__half, R>(a, stream) : launch<__nv_bfloat16, R>(a, stream);
}

}  // namespace

cudaError_t wide_attention(const WideAttention& a, cudaStream_t stream) {
  if (a.before < 1 || a.before > kMaxSteps1D || a.heads > 65535) return cudaErrorInvalidValue;
  if (a.after == 2) return of_type<1>(a, stream);
  if (a.after == 4) return of_type<2>(a, stream);
  if (a.after == 6) return of_type<3>(a, stream);
  return cudaErrorInvalidValue;
}

}  // namespace sigma::kernels
