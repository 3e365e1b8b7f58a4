#include "sigma/attention/kernels/heads_unit.h"
#include "sigma/attention/kernels/packed_heads.h"

namespace sigma::kernels {
namespace {

constexpr int kThreads = 128;
constexpr int kLanes = 8;  // of a head: 128 bytes of it at a time

// Channels c .. c + kSize - 1 of a head, turned by the token's angles, whose sines have this sign.
template <typename T>
__device__ Unit<T> turned(const PackHeads& a, const T* head, int c, int64_t token, float sign) {
  const Unit<T> own = Unit<T>::load(head + c);
  Unit<T> out = own;
  const float* cos = a.cos + token * a.pairs;
  const float* sin = a.sin + token * a.pairs;
  if (a.interleaved) {
#pragma unroll
    for (int j = 0; j < Unit<T>::kSize; j += 2) {
      const int pair = (c + j) / 2;
      if (pair >= a.pairs) break;
      const float co = cos[pair], si = sign * sin[pair];
      out.x[j] = own.x[j] * co - own.x[j + 1] * si;
      out.x[j + 1] = own.x[j] * si + own.x[j + 1] * co;
    }
    return out;
  }
#pragma unroll
  for (int j = 0; j < Unit<T>::kSize; ++j) {
    const bool first = c + j < a.pairs;
    const int pair = first ? c + j : c + j - a.pairs;
    if (pair >= a.pairs) break;
    const float other = as_float(head[first ? pair + a.pairs : pair]);
    const float si = sign * sin[pair];
    out.x[j] = own.x[j] * cos[pair] + (first ? -si : si) * other;
  }
  return out;
}

// A packed row a thread block, 8 lanes a head.
template <typename T, bool kGrad>
__global__ void __launch_bounds__(kThreads, 8) pack_kernel(const PackHeads a) {
  const int64_t b = blockIdx.x / a.N, i = blockIdx.x % a.N;
  const int64_t token = a.order[i];
  T* row = static_cast<T*>(a.rows) + b * a.batch_stride + token * a.row_stride;
  const int D = static_cast<int>(a.D);
  for (int head = threadIdx.x / kLanes; head < a.heads; head += kThreads / kLanes) {
    T* const in_row = row + int64_t(head) * D;
    for (int c = threadIdx.x % kLanes * Unit<T>::kSize; c < D; c += kLanes * Unit<T>::kSize) {
      Unit<T> sum = Unit<T>::zero();
      for (int u = 0; u < a.uses; ++u) {
        const HeadsUse& use = a.use[u];
        const int h = head - use.first;
        if (h < 0 || h >= use.count || !use.data) continue;
        T* const packed = static_cast<T*>(use.data) + ((b * use.count + h) * a.N + i) * D;
        const T* const from = kGrad ? packed : in_row;
        const Unit<T> x =
            use.turned ? turned(a, from, c, token, kGrad ? -1.0f : 1.0f) : Unit<T>::load(from + c);
        if (!kGrad) x.store(packed + c);
#pragma unroll
        for (int j = 0; j < Unit<T>::kSize; ++j) sum.x[j] += x.x[j];
      }
      if (kGrad) sum.store(in_row + c);
    }
  }
}

template <bool kGrad>
cudaError_t launch(const PackHeads& a, cudaStream_t stream) {
  const int64_t unit = a.type == HeadsType::kFloat32 ? 4 : 8;
  if (a.D % unit != 0 || a.row_stride % unit != 0 || a.batch_stride % unit != 0 ||
      a.uses > kMaxUses || a.B * a.N >= int64_t{1} << 31)
    return cudaErrorInvalidValue;
  if (a.B * a.N * a.heads * a.D == 0) return cudaSuccess;
  const auto kernel = a.type == HeadsType::kFloat32   ? pack_kernel<float, kGrad>
                      : a.type == HeadsType::kFloat16 ? pack_kernel<__half, kGrad>
                                                      : pack_kernel<__nv_bfloat16, kGrad>;
  kernel<<<static_cast<unsigned>(a.B * a.N), kThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace

cudaError_t pack_heads(const PackHeads& a, cudaStream_t stream) { return launch<false>(a, stream); }
cudaError_t pack_heads_grad(const PackHeads& a, cudaStream_t stream) {
  return launch<true>(a, stream);
}

}  // namespace sigma::kernels
