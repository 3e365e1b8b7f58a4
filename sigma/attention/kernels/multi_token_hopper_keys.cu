// Gradients of the wide keys and values from the score maps (multi_token_hopper.h):
//
//   dkhat_r[j] = scale sum_i dS[i,j] q_{i - a_r}       dvhat_r[j] = sum_i P[i,j] g_{i + a_r}
//
// A CTA has 128 keys, a warpgroup 64 of them and all steps: 64 x 384 sums in registers. Queries come
// 64 at a time: of the map 64 x 128 as operand A, turned (its rows are summed over); of q or g one
// tile of 72 rows, whose windows side by side are one operand B (hopper_windows.h). The order of the
// windows is that of the rows: step R - 1 - p for q, p for g.
#include "sigma/attention/kernels/hopper_windows.h"
#include "sigma/attention/kernels/multi_token_hopper.h"

namespace sigma::kernels {
namespace {

using namespace hopper;

constexpr int kThreads = 384;  // a producer and two consumer warpgroups
constexpr int kSlots = 8;
constexpr int kRows = 72;  // 64 queries and up to 8 rows for the steps

struct alignas(1024) Shared {
  struct {
    char map[2][64 * 128];  // 64 queries x 64 keys of each warpgroup
    char x[kRows * 128];
  } slot[kSlots];
  uint64_t full[kSlots], empty[kSlots];
};

struct Side {
  int first, steps;  // row of the tile for query i: i + first, and on
  bool back;         // the steps' order
  float scale;
  int first_key;
};

// One of the two gradients.
struct Job {
  CUtensorMap map, x, to;
  Side side;
};

// Half the steps (made even) of 64 keys: the columns of one matrix instruction.
template <class T, int half>
__device__ void consume(Shared& s, const CUtensorMap* to, const Side& side, int64_t N, int key,
                        int head, int group) {
  float low[32 * half], high[32 * half];
  const int thread = threadIdx.x % 128, tiles = int((N + 63) / 64);
  pin(low);
  pin(high);
  for (int t = 0; t < tiles; ++t) {
    const int at = t % kSlots;
    const uint32_t map = shared_address(s.slot[at].map[group]), x = shared_address(s.slot[at].x);
    barrier_wait(&s.full[at], t / kSlots & 1);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      Mma<T, 64 * half, 1, 1>::run(low, mn_major(map, k), window_mn(x, 0, k), (t | k) != 0);
      Mma<T, 64 * half, 1, 1>::run(high, mn_major(map, k), window_mn(x, half, k), (t | k) != 0);
    }
    wgmma_commit();
    wgmma_wait<1>();  // the tile before this one
    if (thread == 0 && t > 0) barrier_arrive(&s.empty[(t - 1) % kSlots]);
  }
  wgmma_wait<0>();
  pin(low);
  pin(high);
  // The sums leave through the slots, once both warpgroups have read them.
  meet(3, 256);
  char* out = reinterpret_cast<char*>(&s) + group * 2 * half * 8192;
  const int lane = thread % 32, row = thread / 32 * 16 + lane % 16;
#pragma unroll
  for (int k = 0; k < 8 * half; ++k) {
    uint32_t p[4];
    const auto pack_all = [&](float(&d)[32 * half], int j) {
#pragma unroll
      for (int i = 0; i < 8; ++i) d[8 * j + i] *= side.scale;
      pack_operand<T>(p, d, j);
    };
    if (k < 4 * half) pack_all(low, k);
    else pack_all(high, k - 4 * half);
    const int unit = k % 4 * 2 + lane / 16;
    store_matrices(shared_address(out) + k / 4 * 8192 + row * 128 + ((unit ^ (row % 8)) << 4), p[0],
                   p[1], p[2], p[3]);
  }
  fence_async();
  meet(1 + group, 128);
  if (thread == 0) {
    for (int p = 0; p < side.steps; ++p)
      tma_store(to, out + p * 8192, 0, side.first_key + key + group * 64,
                head * side.steps + (side.back ? side.steps - 1 - p : p));
    stores_commit();
    stores_read();
  }
}

// Grid (keys by 128, heads, jobs); keys count from the strip's first.
template <class T, int half>
__global__ void __launch_bounds__(kThreads, 1)
    keys_kernel(const __grid_constant__ Job one, const __grid_constant__ Job two, const int64_t N) {
  extern __shared__ __align__(1024) char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory);
  const int key = blockIdx.x * 128, head = blockIdx.y, group = threadIdx.x / 128;
  const Job& job = blockIdx.z == 0 ? one : two;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kSlots; ++i) {
      barrier_init(&s.full[i], 1);
      barrier_init(&s.empty[i], 2);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (group == 0) {
    fewer_registers<24>();
    if (threadIdx.x != 0) return;
    const int tiles = int((N + 63) / 64);
    for (int t = 0; t < tiles; ++t) {
      const int at = t % kSlots;
      barrier_wait(&s.empty[at], (t / kSlots & 1) ^ 1);
      barrier_expect(&s.full[at], sizeof(s.slot[at]));
      tma_load(s.slot[at].map[0], &job.map, &s.full[at], key, t * 64, head);
      tma_load(s.slot[at].map[1], &job.map, &s.full[at], key + 64, t * 64, head);
      tma_load(s.slot[at].x, &job.x, &s.full[at], 0, t * 64 + job.side.first, head);
    }
  } else {
    more_registers<240>();
    consume<T, half>(s, &job.to, job.side, N, key, head, group - 1);
  }
}

template <class T, int half>
cudaError_t launch(const WideAttentionGrad& a, const Job& one, const Job& two, int jobs,
                   cudaStream_t stream) {
  const auto kernel = keys_kernel<T, half>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared));
  if (error != cudaSuccess) return error;
  const dim3 grid(unsigned((a.keys + 127) / 128), unsigned(a.heads), unsigned(jobs));
  kernel<<<grid, kThreads, sizeof(Shared), stream>>>(one, two, a.N);
  return cudaGetLastError();
}

template <class T>
cudaError_t by_steps(const WideAttentionGrad& a, const Job& one, const Job& two, int jobs,
                     cudaStream_t stream) {
  if (one.side.steps <= 2) return launch<T, 1>(a, one, two, jobs, stream);
  if (one.side.steps <= 4) return launch<T, 2>(a, one, two, jobs, stream);
  return launch<T, 3>(a, one, two, jobs, stream);
}

cudaError_t make(Job& job, const WideAttentionGrad& a, const void* map, const void* x, void* to) {
  for (const cudaError_t error :
       {tensor_map(&job.map, map, a.half, map_columns(a.keys), a.N, a.heads, 64, 1),
        tensor_map(&job.x, x, a.half, 64, a.N, a.heads, kRows, 1),
        tensor_map(&job.to, to, a.half, 64, a.N, a.heads * job.side.steps, 64, 1)})
    if (error != cudaSuccess) return error;
  return cudaSuccess;
}

// Both in one launch, if they are as wide.
template <class T>
cudaError_t both(const WideAttentionGrad& a, cudaStream_t stream) {
  Job keys{}, values{};
  keys.side = {-a.before_first - (a.before - 1), a.before, true, a.scale, int(a.first_key)};
  values.side = {a.after_first, a.after, false, 1, int(a.first_key)};
  cudaError_t error = make(keys, a, a.grad, a.q, a.gkhat);
  if (error == cudaSuccess) error = make(values, a, a.prob, a.grad_out, a.gvhat);
  if (error != cudaSuccess) return error;
  if ((a.before + 1) / 2 == (a.after + 1) / 2) return by_steps<T>(a, keys, values, 2, stream);
  error = by_steps<T>(a, keys, keys, 1, stream);
  return error != cudaSuccess ? error : by_steps<T>(a, values, values, 1, stream);
}

}  // namespace

cudaError_t wide_attention_keys(const WideAttentionGrad& a, cudaStream_t stream) {
  return a.half ? both<__half>(a, stream) : both<__nv_bfloat16>(a, stream);
}

}  // namespace sigma::kernels
