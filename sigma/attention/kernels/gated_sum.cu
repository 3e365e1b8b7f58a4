#include "sigma/attention/kernels/heads_unit.h"
#include "sigma/attention/kernels/packed_heads.h"

namespace sigma::kernels {
namespace {

// Where head h of packed row i lies, and its gates.
struct Place {
  bool gated;      // a grid token
  int64_t out;     // in rows
  int64_t packed;  // in the branches, or in beside
  int64_t gate;

  __device__ Place(const GatedSum& a, int64_t b, int64_t i, int64_t h) : gated(i < a.Ng) {
    const int64_t row = (b * a.N + a.order[i]) * a.H + h;
    out = row * a.D;
    packed =
        gated ? ((b * a.H + h) * a.Ng + i) * a.D : ((b * a.H + h) * (a.N - a.Ng) + i - a.Ng) * a.D;
    gate = row * a.branches;
  }
};

template <typename T>
__device__ float gate_of(const GatedSum& a, const Place& at, int j) {
  return 1 / (1 + __expf(-as_float(__ldg(static_cast<const T*>(a.gates) + at.gate + j))));
}

// What all branches, or beside as the first, hold at c.
template <typename T>
__device__ void load(const GatedSum& a, const Place& at, int64_t c, uint4 (&raw)[kMaxBranches]) {
#pragma unroll
  for (int j = 0; j < kMaxBranches; ++j) {
    if (at.gated && j < a.branches)
      raw[j] = load_16(static_cast<const T*>(a.branch[j]) + at.packed + c);
  }
  if (!at.gated) raw[0] = load_16(static_cast<const T*>(a.beside) + at.packed + c);
}

template <typename T>
__global__ void __launch_bounds__(kHeadThreads) gated_kernel(const GatedSum a) {
  const BlockRows rows(a.N);
  for (int64_t h = threadIdx.x / kHeadLanes; h < a.H; h += kHeadsAtOnce) {
    for (int64_t c = threadIdx.x % kHeadLanes * Unit<T>::kSize; c < a.D;
         c += kHeadLanes * Unit<T>::kSize) {
      for (int64_t i = rows.first; i < rows.end; ++i) {
        const Place at(a, rows.b, i, h);
        uint4 raw[kMaxBranches];
        load<T>(a, at, c, raw);
        Unit<T> sum;
        if (!at.gated) sum = Unit<T>(raw[0]);
#pragma unroll
        for (int j = 0; j < kMaxBranches; ++j)
          if (at.gated && j < a.branches) sum.add(Unit<T>(raw[j]), gate_of<T>(a, at, j));
        sum.store(static_cast<T*>(a.rows) + at.out + c);
      }
    }
  }
}

// All lanes stay to the end, for they sum together.
template <typename T>
__global__ void __launch_bounds__(kHeadThreads) grad_kernel(const GatedSum a) {
  const BlockRows rows(a.N);
  const int lane = static_cast<int>(threadIdx.x) % kHeadLanes;
  for (int64_t h0 = 0; h0 < a.H; h0 += kHeadsAtOnce) {
    const int64_t h = h0 + threadIdx.x / kHeadLanes;
    const bool there = h < a.H;
    for (int64_t i = rows.first; i < rows.end; ++i) {
      const Place at(a, rows.b, i, there ? h : 0);
      float gate[kMaxBranches] = {}, dot[kMaxBranches] = {};
#pragma unroll
      for (int j = 0; j < kMaxBranches; ++j)
        if (at.gated && j < a.branches) gate[j] = gate_of<T>(a, at, j);
      for (int64_t c = lane * Unit<T>::kSize; there && c < a.D; c += kHeadLanes * Unit<T>::kSize) {
        const uint4 raw_grad = load_16(static_cast<const T*>(a.rows) + at.out + c);
        if (!at.gated) {
          Unit<T>(raw_grad).store(static_cast<T*>(a.grad_beside) + at.packed + c);
          continue;
        }
        uint4 raw[kMaxBranches];
        load<T>(a, at, c, raw);
        const Unit<T> grad(raw_grad);
#pragma unroll
        for (int j = 0; j < kMaxBranches; ++j) {
          if (j >= a.branches) continue;
          const Unit<T> x(raw[j]);
          Unit<T> out;
          out.add(grad, gate[j]);
          out.store(static_cast<T*>(a.grad_branch[j]) + at.packed + c);
#pragma unroll
          for (int k = 0; k < Unit<T>::kSize; ++k) dot[j] += grad.x[k] * x.x[k];
        }
      }
#pragma unroll
      for (int j = 0; j < kMaxBranches; ++j) {
#pragma unroll
        for (int step = 1; step < kHeadLanes; step *= 2)
          dot[j] += __shfl_xor_sync(~0u, dot[j], step);
        if (there && j < a.branches && lane == j)
          round_to(static_cast<T*>(a.grad_gates)[at.gate + j], dot[j] * gate[j] * (1 - gate[j]));
      }
    }
  }
}

template <typename Kernel>
cudaError_t launch(const GatedSum& a, cudaStream_t stream, Kernel kernel) {
  const int64_t unit = a.type == HeadsType::kFloat32 ? 4 : 8;
  if (a.D % unit != 0 || a.branches > kMaxBranches || a.N >= int64_t{1} << 31 ||
      head_blocks(a.B, a.N) >= int64_t{1} << 31)
    return cudaErrorInvalidValue;
  if (a.B * a.N * a.H * a.D == 0) return cudaSuccess;
  kernel<<<static_cast<unsigned>(head_blocks(a.B, a.N)), kHeadThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace

cudaError_t gated_sum(const GatedSum& a, cudaStream_t stream) {
  switch (a.type) {
    case HeadsType::kFloat32: return launch(a, stream, gated_kernel<float>);
    case HeadsType::kFloat16: return launch(a, stream, gated_kernel<__half>);
    case HeadsType::kBfloat16: return launch(a, stream, gated_kernel<__nv_bfloat16>);
  }
  return cudaErrorInvalidValue;
}

cudaError_t gated_sum_grad(const GatedSum& a, cudaStream_t stream) {
  switch (a.type) {
    case HeadsType::kFloat32: return launch(a, stream, grad_kernel<float>);
    case HeadsType::kFloat16: return launch(a, stream, grad_kernel<__half>);
    case HeadsType::kBfloat16: return launch(a, stream, grad_kernel<__nv_bfloat16>);
  }
  return cudaErrorInvalidValue;
}

}  // namespace sigma::kernels
