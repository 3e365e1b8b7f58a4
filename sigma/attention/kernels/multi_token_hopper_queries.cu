// The gradient of the queries from the score maps (multi_token_hopper.h):
//
//   dq_i = scale sum_r sum_j dS[i + a_r, j] khat_r[j]
//
// A CTA has 256 queries. The product is turned round, dq^T = sum_r khat_r^T dS^T: operand A is a panel
// of 64 wide keys, turned (its rows are summed over), B a window of the map's rows (hopper_windows.h).
// So a tile of dS, 256 + steps - 1 queries x 64 keys, is loaded once for all steps. Two warpgroups
// take every other step; in the end one adds the other's sums to its own, and those of the strips of
// keys before.
#include "sigma/attention/kernels/hopper_windows.h"
#include "sigma/attention/kernels/multi_token_hopper.h"

namespace sigma::kernels {
namespace {

using namespace hopper;

constexpr int kThreads = 384;  // a producer and two consumer warpgroups
constexpr int kSlots = 2;
constexpr int kBox = 136;  // rows fetched at once: half of 256 and up to 16 more

struct alignas(1024) Shared {
  struct {
    char grad[2 * kBox * 128];
    char k[kMaxSteps1D][64 * 128];
  } slot[kSlots];
  uint64_t full[kSlots], empty[kSlots];
};

template <class T>
__device__ void consume(Shared& s, const CUtensorMap* to, const WideAttentionGrad& a, int query,
                        int head, int group) {
  float sum[128];
#pragma unroll
  for (int i = 0; i < 128; ++i) sum[i] = 0;
  const int thread = threadIdx.x % 128, tiles = int((a.keys + 63) / 64);
  pin(sum);
  for (int t = 0; t < tiles; ++t) {
    const int at = t % kSlots;
    const uint32_t grad = shared_address(s.slot[at].grad), keys = shared_address(s.slot[at].k);
    barrier_wait(&s.full[at], t / kSlots & 1);
    for (int r = group; r < a.before; r += 2) {
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k)
        Mma<T, 256, 1, 0>::run(sum, mn_major(keys + r * 8192, k), window_k(grad, r, k), 1);
      wgmma_commit();
      wgmma_wait<1>();
    }
    wgmma_wait<0>();
    if (thread == 0) barrier_arrive(&s.empty[at]);
  }
  pin(sum);
  float* others = reinterpret_cast<float*>(s.slot[0].grad);
  char* out = s.slot[1].grad;
  meet(3, 256);  // the slots are free
  if (group == 1) {
#pragma unroll
    for (int i = 0; i < 128; ++i) others[i * 128 + thread] = sum[i];
  }
  meet(3, 256);
  if (group == 1) return;
  // Strips add up: each thread finds its own numbers again. (Loads and stores apart, so that they do
  // not wait for each other.)
  float* strips = a.gq_sum + (int64_t(head) * gridDim.x + blockIdx.x) * 128 * 128 + thread;
#pragma unroll
  for (int i = 0; i < 128; ++i) sum[i] += others[i * 128 + thread];
  if (a.first_key > 0) {
#pragma unroll
    for (int i = 0; i < 128; ++i) sum[i] += strips[i * 128];
  }
  if (a.first_key + a.keys < a.N) {
#pragma unroll
    for (int i = 0; i < 128; ++i) strips[i * 128] = sum[i];
    return;
  }
  const int lane = thread % 32, unit = thread / 32 * 2 + lane / 8 % 2;
#pragma unroll
  for (int k = 0; k < 16; ++k) {
    uint32_t p[4];
#pragma unroll
    for (int i = 8 * k; i < 8 * k + 8; ++i) sum[i] *= a.scale;
    pack_operand<T>(p, sum, k);
    const int row = 16 * k + lane / 16 * 8 + lane % 8;
    store_matrices_trans(shared_address(out) + row * 128 + ((unit ^ (row % 8)) << 4), p[0], p[1],
                         p[2], p[3]);
  }
  fence_async();
  meet(1, 128);
  if (thread == 0) {
    tma_store(to, out, 0, query, head);
    stores_commit();
    stores_read();
  }
}

// Grid (queries by 256, heads).
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    queries_kernel(const __grid_constant__ CUtensorMap grad, const __grid_constant__ CUtensorMap k,
                   const __grid_constant__ CUtensorMap to, const WideAttentionGrad a) {
  extern __shared__ __align__(1024) char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory);
  const int query = blockIdx.x * 256, head = blockIdx.y, group = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kSlots; ++i) {
      barrier_init(&s.full[i], 1);
      barrier_init(&s.empty[i], 2);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (group == 0) {
    fewer_registers<40>();
    if (threadIdx.x != 0) return;
    const int tiles = int((a.keys + 63) / 64);
    for (int t = 0; t < tiles; ++t) {
      const int at = t % kSlots;
      barrier_wait(&s.empty[at], (t / kSlots & 1) ^ 1);
      barrier_expect(&s.full[at], 2 * kBox * 128 + a.before * 64 * 128);
      for (int half = 0; half < 2; ++half)
        tma_load(s.slot[at].grad + half * kBox * 128, &grad, &s.full[at], t * 64,
                 query + a.before_first + half * kBox, head);
      for (int r = 0; r < a.before; ++r)
        tma_load(s.slot[at].k[r], &k, &s.full[at], 0, int(a.first_key) + t * 64,
                 head * a.before + r);
    }
  } else {
    more_registers<232>();
    consume<T>(s, &to, a, query, head, group - 1);
  }
}

template <class T>
cudaError_t launch(const WideAttentionGrad& a, cudaStream_t stream) {
  CUtensorMap grad, k, to;
  for (const cudaError_t error :
       {tensor_map(&grad, a.grad, a.half, map_columns(a.keys), a.N, a.heads, kBox, 1),
        tensor_map(&k, a.khat, a.half, 64, a.N, a.heads * a.before, 64, 1),
        tensor_map(&to, a.gq, a.half, 64, a.N, a.heads, 256, 1),
        cudaFuncSetAttribute(queries_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             sizeof(Shared))})
    if (error != cudaSuccess) return error;
  const dim3 grid(unsigned((a.N + 255) / 256), unsigned(a.heads));
  queries_kernel<T><<<grid, kThreads, sizeof(Shared), stream>>>(grad, k, to, a);
  return cudaGetLastError();
}

}  // namespace

cudaError_t wide_attention_queries(const WideAttentionGrad& a, cudaStream_t stream) {
  return a.half ? launch<__half>(a, stream) : launch<__nv_bfloat16>(a, stream);
}

}  // namespace sigma::kernels
