#include "sigma/attention/kernels/heads_unit.h"
#include "sigma/attention/kernels/packed_heads.h"

namespace sigma::kernels {
namespace {

// Where head h of packed row i of sample b lies, and its gates.
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
__device__ void load_gates(const GatedSum& a, const Place& at, float (&gate)[kMaxBranches]) {
#pragma unroll
  for (int j = 0; j < kMaxBranches; ++j) {
    if (at.gated && j < a.branches)
      gate[j] = 1 / (1 + __expf(-as_float(__ldg(static_cast<const T*>(a.gates) + at.gate + j))));
  }
}

// All branches' units at c, on their way before one is used.
template <typename T>
__device__ void load_branches(const GatedSum& a, const Place& at, int c,
                              uint4 (&raw)[kMaxBranches]) {
#pragma unroll
  for (int j = 0; j < kMaxBranches; ++j) {
    if (j < a.branches) raw[j] = load_16(static_cast<const T*>(a.branch[j]) + at.packed + c);
  }
}

// A packed row a thread block, 8 lanes a head.
template <typename T>
__global__ void __launch_bounds__(kHeadThreads) gated_kernel(const GatedSum a) {
  const int64_t b = blockIdx.x / a.N, i = blockIdx.x % a.N;
  for (int64_t h = threadIdx.x / kHeadLanes; h < a.H; h += kHeadsAtOnce) {
    const Place at(a, b, i, h);
    float gate[kMaxBranches] = {};
    load_gates<T>(a, at, gate);
    for (int c = threadIdx.x % kHeadLanes * Unit<T>::kSize; c < a.D;
         c += kHeadLanes * Unit<T>::kSize) {
      Unit<T> sum;
      if (at.gated) {
        uint4 raw[kMaxBranches] = {};
        load_branches<T>(a, at, c, raw);
#pragma unroll
        for (int j = 0; j < kMaxBranches; ++j)
          if (j < a.branches) sum.add(Unit<T>(raw[j]), gate[j]);
      } else {
        sum = Unit<T>(load_16(static_cast<const T*>(a.beside) + at.packed + c));
      }
      sum.store(static_cast<T*>(a.rows) + at.out + c);
    }
  }
}

// The same; all lanes stay to the end, for they sum together.
template <typename T>
__global__ void __launch_bounds__(kHeadThreads) grad_kernel(const GatedSum a) {
  const int64_t b = blockIdx.x / a.N, i = blockIdx.x % a.N;
  const int lane = static_cast<int>(threadIdx.x) % kHeadLanes;
  for (int64_t first = 0; first < a.H; first += kHeadsAtOnce) {
    const int64_t h = first + threadIdx.x / kHeadLanes;
    const bool there = h < a.H;
    const Place at(a, b, i, there ? h : 0);
    float gate[kMaxBranches] = {}, dot[kMaxBranches] = {};
    load_gates<T>(a, at, gate);
    for (int c = lane * Unit<T>::kSize; there && c < a.D; c += kHeadLanes * Unit<T>::kSize) {
      const Unit<T> grad(load_16(static_cast<const T*>(a.rows) + at.out + c));
      if (!at.gated) {
        grad.store(static_cast<T*>(a.grad_beside) + at.packed + c);
        continue;
      }
      uint4 raw[kMaxBranches] = {};
      load_branches<T>(a, at, c, raw);
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
      for (int step = 1; step < kHeadLanes; step *= 2) dot[j] += __shfl_xor_sync(~0u, dot[j], step);
      if (there && j < a.branches && lane == j)
        round_to(static_cast<T*>(a.grad_gates)[at.gate + j], dot[j] * gate[j] * (1 - gate[j]));
    }
  }
}

template <typename Kernel>
cudaError_t launch(const GatedSum& a, cudaStream_t stream, Kernel kernel) {
  const int64_t unit = a.type == HeadsType::kFloat32 ? 4 : 8;
  if (a.D % unit != 0 || a.branches > kMaxBranches || a.B * a.N >= int64_t{1} << 31)
    return cudaErrorInvalidValue;
  if (a.B * a.N * a.H * a.D == 0) return cudaSuccess;
  kernel<<<static_cast<unsigned>(a.B * a.N), kHeadThreads, 0, stream>>>(a);
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
