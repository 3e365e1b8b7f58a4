#include "sigma/attention/kernels/heads_unit.h"
#include "sigma/attention/kernels/packed_heads.h"

namespace sigma::kernels {
namespace {

// The channel that channel e makes a pair with; e itself where it does not turn.
__device__ int partner(const PackHeads& a, int e) {
  if (e >= 2 * a.pairs) return e;
  if (a.interleaved) return e ^ 1;
  return e < a.pairs ? e + a.pairs : e - a.pairs;
}

// What the partners of channels c, c + 1, ... hold: neighbours in `own`, or elsewhere in the head.
template <typename T>
__device__ Unit<T> partners(const PackHeads& a, const Unit<T>& own, const T* head, int c) {
  Unit<T> out;
#pragma unroll
  for (int j = 0; j < Unit<T>::kSize; ++j)
    out.x[j] = a.interleaved ? own.x[j ^ 1] : as_float(__ldg(head + partner(a, c + j)));
  return out;
}

// Channels c, c + 1, ... of a head, turned by the token's angles times `sign`.
template <typename T>
__device__ Unit<T> turn(const PackHeads& a, const Unit<T>& own, const Unit<T>& other, int c,
                        int64_t token, float sign) {
  Unit<T> out = own;
#pragma unroll
  for (int j = 0; j < Unit<T>::kSize; ++j) {
    const int e = c + j;
    if (e >= 2 * a.pairs) continue;
    const bool first = a.interleaved ? e % 2 == 0 : e < a.pairs;
    const int64_t at = token * a.pairs + (a.interleaved ? e / 2 : first ? e : e - a.pairs);
    out.x[j] = own.x[j] * a.cos[at] + (first ? -sign : sign) * a.sin[at] * other.x[j];
  }
  return out;
}

// A packed row and a part a thread block, 8 lanes a head.
template <typename T>
__global__ void __launch_bounds__(kHeadThreads) pack_kernel(const PackHeads a) {
  const PackedPart& part = a.part[blockIdx.y];
  const int64_t b = blockIdx.x / a.N, i = blockIdx.x % a.N, token = a.order[i];
  const int D = static_cast<int>(a.D);
  const T* const row = static_cast<const T*>(a.rows) + b * a.batch_stride + token * a.row_stride +
                       int64_t(part.first) * D;
  for (int h = threadIdx.x / kHeadLanes; h < part.heads; h += kHeadsAtOnce) {
    const T* const head = row + int64_t(h) * D;
    const int64_t packed = ((b * part.heads + h) * a.N + i) * D;
    for (int c = threadIdx.x % kHeadLanes * Unit<T>::kSize; c < D;
         c += kHeadLanes * Unit<T>::kSize) {
      const Unit<T> x(load_16(head + c));
      if (part.plain) x.store(static_cast<T*>(part.plain) + packed + c);
      if (part.turned)
        turn(a, x, partners(a, x, head, c), c, token, 1)
            .store(static_cast<T*>(part.turned) + packed + c);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kHeadThreads) grad_kernel(const PackHeads a) {
  const PackedPart& part = a.part[blockIdx.y];
  const int64_t b = blockIdx.x / a.N, i = blockIdx.x % a.N, token = a.order[i];
  const int D = static_cast<int>(a.D);
  T* const row =
      static_cast<T*>(a.rows) + b * a.batch_stride + token * a.row_stride + int64_t(part.first) * D;
  for (int h = threadIdx.x / kHeadLanes; h < part.heads; h += kHeadsAtOnce) {
    const int64_t packed = ((b * part.heads + h) * a.N + i) * D;
    for (int c = threadIdx.x % kHeadLanes * Unit<T>::kSize; c < D;
         c += kHeadLanes * Unit<T>::kSize) {
      uint4 raw[kMaxReaders] = {};  // all on their way before one is used
#pragma unroll
      for (int u = 0; u < kMaxReaders; ++u)
        if (part.grad[u]) raw[u] = load_16(static_cast<const T*>(part.grad[u]) + packed + c);
      Unit<T> sum, own, other;
#pragma unroll
      for (int u = 0; u < kMaxReaders; ++u) {
        if (!part.grad[u]) continue;
        const Unit<T> x(raw[u]);
        if (!part.turns[u]) {
          sum.add(x);
          continue;
        }
        own.add(x);
        other.add(partners(a, x, static_cast<const T*>(part.grad[u]) + packed, c));
      }
      sum.add(turn(a, own, other, c, token, -1));
      sum.store(row + int64_t(h) * D + c);
    }
  }
}

template <typename Kernel>
cudaError_t launch(const PackHeads& a, cudaStream_t stream, Kernel kernel) {
  const int64_t unit = a.type == HeadsType::kFloat32 ? 4 : 8;
  if (a.D % unit != 0 || a.row_stride % unit != 0 || a.batch_stride % unit != 0 || a.parts < 1 ||
      a.parts > kMaxParts || a.B * a.N >= int64_t{1} << 31)
    return cudaErrorInvalidValue;
  if (a.B * a.N * a.D == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(a.B * a.N), static_cast<unsigned>(a.parts));
  kernel<<<grid, kHeadThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace

cudaError_t pack_heads(const PackHeads& a, cudaStream_t stream) {
  switch (a.type) {
    case HeadsType::kFloat32: return launch(a, stream, pack_kernel<float>);
    case HeadsType::kFloat16: return launch(a, stream, pack_kernel<__half>);
    case HeadsType::kBfloat16: return launch(a, stream, pack_kernel<__nv_bfloat16>);
  }
  return cudaErrorInvalidValue;
}

cudaError_t pack_heads_grad(const PackHeads& a, cudaStream_t stream) {
  switch (a.type) {
    case HeadsType::kFloat32: return launch(a, stream, grad_kernel<float>);
    case HeadsType::kFloat16: return launch(a, stream, grad_kernel<__half>);
    case HeadsType::kBfloat16: return launch(a, stream, grad_kernel<__nv_bfloat16>);
  }
  return cudaErrorInvalidValue;
}

}  // namespace sigma::kernels
