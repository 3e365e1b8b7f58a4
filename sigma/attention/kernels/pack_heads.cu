#include <type_traits>

#include "sigma/attention/kernels/heads_unit.h"
#include "sigma/attention/kernels/packed_heads.h"

namespace sigma::kernels {
namespace {

constexpr int kBlocks = 5;  // of a multiprocessor, at least: unasked, ptxas spills to have 16

// Which channels turn together: none, 2k and 2k + 1, k and k + pairs.
enum class Pairing { kNone, kNeighbours, kHalves };

// What the partners of channels c, c + 1, ... of a head hold; `own`: what these hold.
template <Pairing kPairing, typename T>
__device__ Unit<T> partners(const PackHeads& a, const Unit<T>& own, const T* head, int c) {
  Unit<T> out;
#pragma unroll
  for (int j = 0; j < Unit<T>::kSize; ++j) {
    if (kPairing == Pairing::kNeighbours) {
      out.x[j] = own.x[j ^ 1];
    } else if (c + j < 2 * a.pairs) {
      out.x[j] = as_float(__ldg(head + (c + j < a.pairs ? c + j + a.pairs : c + j - a.pairs)));
    }
  }
  return out;
}

// Channels c, c + 1, ... of a head, turned by the token's angles times `sign`.
template <Pairing kPairing, typename T>
__device__ Unit<T> turn(const PackHeads& a, const Unit<T>& own, const Unit<T>& other, int c,
                        int64_t token, float sign) {
  Unit<T> out = own;
  const float* const cos = a.cos + token * a.pairs;
  const float* const sin = a.sin + token * a.pairs;
#pragma unroll
  for (int j = 0; j < Unit<T>::kSize; ++j) {
    const int e = c + j;
    if (e >= 2 * a.pairs) continue;
    const bool first = kPairing == Pairing::kNeighbours ? j % 2 == 0 : e < a.pairs;
    const int pair = kPairing == Pairing::kNeighbours ? e / 2 : first ? e : e - a.pairs;
    out.x[j] = own.x[j] * cos[pair] + (first ? -sign : sign) * sin[pair] * other.x[j];
  }
  return out;
}

// Where a thread's 16 bytes lie.
struct Place {
  int64_t row, packed;  // in the row of token 0, in packed row 0

  __device__ Place(const PackHeads& a, const PackedPart& part, int64_t b, int h, int c)
      : row(b * a.batch_stride + (part.first + h) * a.D + c),
        packed((b * part.heads + h) * a.N * a.D + c) {}
};

template <Pairing kPairing, typename T>
__global__ void __launch_bounds__(kHeadThreads, kBlocks) pack_kernel(const PackHeads a) {
  const PackedPart& part = a.part[blockIdx.y];
  const BlockRows rows(a.N);
  for (int h = threadIdx.x / kHeadLanes; h < part.heads; h += kHeadsAtOnce) {
    for (int c = threadIdx.x % kHeadLanes * Unit<T>::kSize; c < a.D;
         c += kHeadLanes * Unit<T>::kSize) {
      const Place at(a, part, rows.b, h, c);
      for (int64_t i = rows.first; i < rows.end; ++i) {
        const int64_t token = a.order[i], to = at.packed + i * a.D;
        const T* const from = static_cast<const T*>(a.rows) + at.row + token * a.row_stride;
        const Unit<T> x(load_16(from));
        if (part.plain) x.store(static_cast<T*>(part.plain) + to);
        if constexpr (kPairing != Pairing::kNone) {
          if (!part.turned) continue;
          turn<kPairing>(a, x, partners<kPairing>(a, x, from - c, c), c, token, 1)
              .store(static_cast<T*>(part.turned) + to);
        }
      }
    }
  }
}

template <Pairing kPairing, typename T>
__global__ void __launch_bounds__(kHeadThreads, kBlocks) grad_kernel(const PackHeads a) {
  const PackedPart& part = a.part[blockIdx.y];
  const BlockRows rows(a.N);
  for (int h = threadIdx.x / kHeadLanes; h < part.heads; h += kHeadsAtOnce) {
    for (int c = threadIdx.x % kHeadLanes * Unit<T>::kSize; c < a.D;
         c += kHeadLanes * Unit<T>::kSize) {
      const Place at(a, part, rows.b, h, c);
      for (int64_t i = rows.first; i < rows.end; ++i) {
        const int64_t token = a.order[i];
        uint4 raw[kMaxReaders];  // all on their way before the first is used
#pragma unroll
        for (int u = 0; u < kMaxReaders; ++u) {
          if (part.grad[u])
            raw[u] = load_16(static_cast<const T*>(part.grad[u]) + at.packed + i * a.D);
        }
        Unit<T> sum, own, other;
#pragma unroll
        for (int u = 0; u < kMaxReaders; ++u) {
          if (!part.grad[u]) continue;
          const Unit<T> x(raw[u]);
          if (kPairing == Pairing::kNone || !part.turns[u]) {
            sum.add(x);
            continue;
          }
          own.add(x);
          const T* const head = static_cast<const T*>(part.grad[u]) + at.packed - c + i * a.D;
          other.add(partners<kPairing>(a, x, head, c));
        }
        if constexpr (kPairing != Pairing::kNone)
          sum.add(turn<kPairing>(a, own, other, c, token, -1));
        sum.store(static_cast<T*>(a.rows) + at.row + token * a.row_stride);
      }
    }
  }
}

template <typename Kernel>
cudaError_t launch(const PackHeads& a, cudaStream_t stream, Kernel kernel) {
  const int64_t unit = a.type == HeadsType::kFloat32 ? 4 : 8;
  if (a.D % unit != 0 || a.row_stride % unit != 0 || a.batch_stride % unit != 0 || a.parts < 1 ||
      a.parts > kMaxParts || a.N >= int64_t{1} << 31 || head_blocks(a.B, a.N) >= int64_t{1} << 31)
    return cudaErrorInvalidValue;
  if (a.B * a.N * a.D == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(head_blocks(a.B, a.N)), static_cast<unsigned>(a.parts));
  kernel<<<grid, kHeadThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

// Calls f with the pairing and a T.
template <typename F>
cudaError_t with_kind(const PackHeads& a, F f) {
  const auto typed = [&](auto pairing) {
    switch (a.type) {
      case HeadsType::kFloat32: return f(pairing, 0.0f);
      case HeadsType::kFloat16: return f(pairing, __half());
      case HeadsType::kBfloat16: return f(pairing, __nv_bfloat16());
    }
    return cudaErrorInvalidValue;
  };
  if (a.pairs == 0) return typed(std::integral_constant<Pairing, Pairing::kNone>());
  if (a.interleaved) return typed(std::integral_constant<Pairing, Pairing::kNeighbours>());
  return typed(std::integral_constant<Pairing, Pairing::kHalves>());
}

}  // namespace

cudaError_t pack_heads(const PackHeads& a, cudaStream_t stream) {
  return with_kind(a, [&](auto pairing, auto zero) {
    return launch(a, stream, pack_kernel<decltype(pairing)::value, decltype(zero)>);
  });
}

cudaError_t pack_heads_grad(const PackHeads& a, cudaStream_t stream) {
  return with_kind(a, [&](auto pairing, auto zero) {
    return launch(a, stream, grad_kernel<decltype(pairing)::value, decltype(zero)>);
  });
}

}  // namespace sigma::kernels
