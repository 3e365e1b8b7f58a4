#include "sigma/attention/kernels/heads_unit.h"
#include "sigma/attention/kernels/packed_heads.h"

namespace sigma::kernels {
namespace {

constexpr int kThreads = 128;
constexpr int kLanes = 8;  // of a head: 128 bytes of it at a time

// A packed row a thread block, 8 lanes a head. All lanes stay to the end: they sum together.
template <typename T, bool kGrad>
__global__ void __launch_bounds__(kThreads) gated_kernel(const GatedSum a) {
  constexpr int kSize = Unit<T>::kSize;
  const int64_t b = blockIdx.x / a.N, i = blockIdx.x % a.N;
  const int64_t row = b * a.N + a.order[i];
  const bool gated = i < a.Ng;
  const int D = static_cast<int>(a.D);
  for (int64_t first = 0; first < a.H; first += kThreads / kLanes) {
    const int64_t head = first + threadIdx.x / kLanes;
    const bool there = head < a.H;
    T* const out = static_cast<T*>(a.rows) + (row * a.H + head) * D;
    const int64_t packed = gated ? ((b * a.H + head) * a.Ng + i) * D
                                 : ((b * a.H + head) * (a.N - a.Ng) + i - a.Ng) * D;
    const int64_t gate_at = (row * a.H + head) * a.branches;
    float gate[kMaxBranches] = {}, dot[kMaxBranches] = {};
#pragma unroll
    for (int j = 0; j < kMaxBranches; ++j) {
      if (gated && there && j < a.branches)
        gate[j] = 1 / (1 + __expf(-as_float(static_cast<const T*>(a.gates)[gate_at + j])));
    }
    for (int c = threadIdx.x % kLanes * kSize; there && c < D; c += kLanes * kSize) {
      if (!gated) {
        if (kGrad) Unit<T>::load(out + c).store(static_cast<T*>(a.grad_beside) + packed + c);
        else Unit<T>::load(static_cast<const T*>(a.beside) + packed + c).store(out + c);
        continue;
      }
      Unit<T> sum = kGrad ? Unit<T>::load(out + c) : Unit<T>::zero();
#pragma unroll
      for (int j = 0; j < kMaxBranches; ++j) {
        if (j >= a.branches) break;
        Unit<T> x = Unit<T>::load(static_cast<const T*>(a.branch[j]) + packed + c);
#pragma unroll
        for (int k = 0; k < kSize; ++k) {
          if (kGrad) {
            dot[j] += sum.x[k] * x.x[k];
            x.x[k] = gate[j] * sum.x[k];
          } else {
            sum.x[k] += gate[j] * x.x[k];
          }
        }
        if (kGrad) x.store(static_cast<T*>(a.grad_branch[j]) + packed + c);
      }
      if (!kGrad) sum.store(out + c);
    }
    if (kGrad) {
#pragma unroll
      for (int j = 0; j < kMaxBranches; ++j) {
#pragma unroll
        for (int step = 1; step < kLanes; step *= 2) dot[j] += __shfl_xor_sync(~0u, dot[j], step);
        if (there && j < a.branches && threadIdx.x % kLanes == j)
          set_rounded(static_cast<T*>(a.grad_gates)[gate_at + j], dot[j] * gate[j] * (1 - gate[j]));
      }
    }
  }
}

template <bool kGrad>
cudaError_t launch(const GatedSum& a, cudaStream_t stream) {
  const int64_t unit = a.type == HeadsType::kFloat32 ? 4 : 8;
  if (a.D % unit != 0 || a.branches > kMaxBranches || a.B * a.N >= int64_t{1} << 31)
    return cudaErrorInvalidValue;
  if (a.B * a.N * a.H * a.D == 0) return cudaSuccess;
  const auto kernel = a.type == HeadsType::kFloat32   ? gated_kernel<float, kGrad>
                      : a.type == HeadsType::kFloat16 ? gated_kernel<__half, kGrad>
                                                      : gated_kernel<__nv_bfloat16, kGrad>;
  kernel<<<static_cast<unsigned>(a.B * a.N), kThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace

cudaError_t gated_sum(const GatedSum& a, cudaStream_t stream) { return launch<false>(a, stream); }
cudaError_t gated_sum_grad(const GatedSum& a, cudaStream_t stream) {
  return launch<true>(a, stream);
}

}  // namespace sigma::kernels
