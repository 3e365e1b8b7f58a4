#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "sigma/moe/kernels/experts.h"

namespace sigma::kernels {
namespace {

using bf16 = __nv_bfloat16;

constexpr int kWarp = 32;
constexpr int kWarps = 8;   // of a block; a warp takes a row, or a part of one
constexpr int kVector = 8;  // elements of a 16-byte access

struct Vector {
  float v[kVector];
};

__device__ Vector load(const bf16* p) {
  const uint4 raw = *reinterpret_cast<const uint4*>(p);
  const auto* pair = reinterpret_cast<const __nv_bfloat162*>(&raw);
  Vector out;
  for (int i = 0; i < kVector / 2; ++i) {
    const float2 two = __bfloat1622float2(pair[i]);
    out.v[2 * i] = two.x;
    out.v[2 * i + 1] = two.y;
  }
  return out;
}

__device__ void store(bf16* p, const Vector& x) {
  uint4 raw;
  auto* pair = reinterpret_cast<__nv_bfloat162*>(&raw);
  for (int i = 0; i < kVector / 2; ++i) pair[i] = __floats2bfloat162_rn(x.v[2 * i], x.v[2 * i + 1]);
  *reinterpret_cast<uint4*>(p) = raw;
}

// The row, and the lane's first element, of a warp that takes `width` columns of a row at a time.
struct Place {
  int64_t row;
  int64_t first;
};
__device__ Place place(int64_t parts) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y;
  return {warp / parts, (warp % parts * kWarp + threadIdx.x) * kVector};
}

__device__ int32_t used(const ExpertRows& rows) { return rows.offsets[rows.E]; }

__device__ int expert_of(const ExpertRows& rows, int64_t row) {
  int low = 0, high = static_cast<int>(rows.E);  // the last e with offsets[e] <= row
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (rows.offsets[middle] <= row ? low : high) = middle;
  }
  return low;
}

__device__ float warp_sum(float x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

__device__ float sigmoid(float x) { return 1.0f / (1.0f + __expf(-x)); }

// gelu and its derivative.
template <ExpertActivation phi>
__device__ float2 gelu(float x) {
  if constexpr (phi == ExpertActivation::kGelu) {
    const float cdf = 0.5f * (1.0f + erff(x * 0.70710678f));
    return {x * cdf, cdf + x * 0.39894228f * __expf(-0.5f * x * x)};
  } else {
    const float inner = 0.79788456f * (x + 0.044715f * x * x * x);
    const float t = tanhf(inner);
    const float slope = 0.79788456f * (1.0f + 0.134145f * x * x);
    return {0.5f * x * (1.0f + t), 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * slope};
  }
}

__global__ void gather_kernel(ExpertRows rows, const bf16* x, int64_t width, int64_t parts,
                              bf16* out) {
  const Place p = place(parts);
  if (p.row >= used(rows) || p.first >= width) return;
  const int64_t token = rows.row_token[p.row];
  *reinterpret_cast<uint4*>(out + p.row * width + p.first) =
      *reinterpret_cast<const uint4*>(x + token * width + p.first);
}

template <ExpertActivation phi>
__global__ void activate_kernel(ExpertRows rows, bf16* z, const bf16* b_in, int64_t I,
                                int64_t parts, bf16* a) {
  const Place p = place(parts);
  if (p.row >= used(rows) || p.first >= I) return;
  constexpr bool gated = phi == ExpertActivation::kSwiglu;
  const int64_t F = gated ? 2 * I : I;
  bf16* at = z + p.row * F + p.first;
  const bf16* bias = b_in == nullptr ? nullptr : b_in + expert_of(rows, p.row) * F + p.first;
  const auto biased = [&](int64_t offset) {
    Vector x = load(at + offset);
    if (bias == nullptr) return x;
    const Vector b = load(bias + offset);
    for (int i = 0; i < kVector; ++i) x.v[i] += b.v[i];
    store(at + offset, x);
    return load(at + offset);  // what the backward reads
  };
  Vector x = biased(0);
  if constexpr (gated) {
    const Vector up = biased(I);
    for (int i = 0; i < kVector; ++i) x.v[i] = x.v[i] * sigmoid(x.v[i]) * up.v[i];
  } else {
    for (int i = 0; i < kVector; ++i) x.v[i] = gelu<phi>(x.v[i]).x;
  }
  store(a + p.row * I + p.first, x);
}

template <ExpertActivation phi>
__global__ void activate_backward_kernel(ExpertRows rows, const bf16* z, const bf16* da,
                                         const float* pair_weight, const bf16* G, const bf16* b_out,
                                         int64_t I, int64_t C, bf16* dz, bf16* ga, float* d_pair) {
  const int64_t row = place(1).row;
  if (row >= used(rows)) return;
  constexpr bool gated = phi == ExpertActivation::kSwiglu;
  const int64_t F = gated ? 2 * I : I;
  const int32_t pair = rows.row_pair[row];
  const float g = pair_weight[pair];
  float dot = 0;
  for (int64_t c = threadIdx.x * kVector; c < I; c += kWarp * kVector) {
    const Vector d = load(da + row * I + c);
    const Vector x = load(z + row * F + c);
    Vector weighted, d_gate, d_up, up;
    if constexpr (gated) up = load(z + row * F + I + c);
    for (int i = 0; i < kVector; ++i) {
      float a;
      if constexpr (gated) {
        const float s = sigmoid(x.v[i]);
        const float silu = x.v[i] * s;
        a = silu * up.v[i];
        d_gate.v[i] = g * d.v[i] * up.v[i] * (s + silu * (1.0f - s));
        d_up.v[i] = g * d.v[i] * silu;
      } else {
        const float2 both = gelu<phi>(x.v[i]);
        a = both.x;
        d_gate.v[i] = g * d.v[i] * both.y;
      }
      dot += d.v[i] * a;
      weighted.v[i] = g * a;
    }
    store(ga + row * I + c, weighted);
    store(dz + row * F + c, d_gate);
    if constexpr (gated) store(dz + row * F + I + c, d_up);
  }
  if (b_out != nullptr) {
    const bf16* bias = b_out + expert_of(rows, row) * C;
    for (int64_t c = threadIdx.x * kVector; c < C; c += kWarp * kVector) {
      const Vector x = load(G + row * C + c), b = load(bias + c);
      for (int i = 0; i < kVector; ++i) dot += x.v[i] * b.v[i];
    }
  }
  dot = warp_sum(dot);
  if (threadIdx.x == 0) d_pair[pair] = dot;
}

__global__ void combine_kernel(ExpertRows rows, const bf16* y, const float* pair_weight,
                               const bf16* b_out, int64_t width, int64_t parts, bf16* out) {
  const Place p = place(parts);  // the row is a token
  if (p.row >= rows.T || p.first >= width) return;
  Vector sum = {};
  const int32_t last = rows.token_offsets[p.row + 1];
#pragma unroll 4
  for (int32_t i = rows.token_offsets[p.row]; i < last; ++i) {
    const int64_t row = rows.token_rows[i];
    const float g = pair_weight == nullptr ? 1.0f : pair_weight[rows.row_pair[row]];
    Vector x = load(y + row * width + p.first);
    if (b_out != nullptr) {
      const Vector b = load(b_out + expert_of(rows, row) * width + p.first);
      for (int c = 0; c < kVector; ++c) x.v[c] += b.v[c];
    }
    for (int c = 0; c < kVector; ++c) sum.v[c] += g * x.v[c];
  }
  store(out + p.row * width + p.first, sum);
}

__global__ void sum_rows_kernel(ExpertRows rows, const bf16* v, const float* pair_weight,
                                int64_t width, bf16* out) {
  const int64_t e = blockIdx.y;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  __shared__ float part[kWarps][kWarp];
  float sum = 0;
  if (c < width) {
    for (int32_t r = rows.offsets[e] + threadIdx.y; r < rows.offsets[e + 1]; r += kWarps)
      sum += (pair_weight == nullptr ? 1.0f : pair_weight[rows.row_pair[r]]) *
             __bfloat162float(v[r * width + c]);
  }
  part[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || c >= width) return;
  for (int i = 1; i < kWarps; ++i) sum += part[i][threadIdx.x];
  out[e * width + c] = __float2bfloat16(sum);
}

__global__ void zero_unused_kernel(ExpertRows rows, int64_t size, bf16* weights) {
  const int64_t e = blockIdx.y;
  if (rows.offsets[e] != rows.offsets[e + 1]) return;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size;
       i += stride)
    weights[e * size + i] = __float2bfloat16(0.0f);
}

unsigned blocks_of(int64_t warps) { return static_cast<unsigned>((warps + kWarps - 1) / kWarps); }
int64_t parts_of(int64_t width) { return (width + kWarp * kVector - 1) / (kWarp * kVector); }
bool launched() { return cudaGetLastError() == cudaSuccess; }
cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }
const dim3 kBlock(kWarp, kWarps);

}  // namespace

bool gather_rows(const ExpertRows& rows, const void* x, int64_t width, void* out) {
  if (rows.R == 0) return true;
  const int64_t parts = parts_of(width);
  gather_kernel<<<blocks_of(rows.R * parts), kBlock, 0, stream_of(rows.stream)>>>(
      rows, static_cast<const bf16*>(x), width, parts, static_cast<bf16*>(out));
  return launched();
}

bool activate_rows(const ExpertRows& rows, ExpertActivation phi, void* z, const void* b_in,
                   int64_t I, void* a) {
  if (rows.R == 0) return true;
  const int64_t parts = parts_of(I);
  const auto kernel = phi == ExpertActivation::kSwiglu ? activate_kernel<ExpertActivation::kSwiglu>
                      : phi == ExpertActivation::kGelu
                          ? activate_kernel<ExpertActivation::kGelu>
                          : activate_kernel<ExpertActivation::kGeluTanh>;
  kernel<<<blocks_of(rows.R * parts), kBlock, 0, stream_of(rows.stream)>>>(
      rows, static_cast<bf16*>(z), static_cast<const bf16*>(b_in), I, parts, static_cast<bf16*>(a));
  return launched();
}

bool activate_rows_backward(const ExpertRows& rows, ExpertActivation phi, const void* z,
                            const void* da, const float* pair_weight, const void* G,
                            const void* b_out, int64_t I, int64_t C, void* dz, void* ga,
                            float* d_pair) {
  if (rows.R == 0) return true;
  const auto kernel =
      phi == ExpertActivation::kSwiglu ? activate_backward_kernel<ExpertActivation::kSwiglu>
      : phi == ExpertActivation::kGelu ? activate_backward_kernel<ExpertActivation::kGelu>
                                       : activate_backward_kernel<ExpertActivation::kGeluTanh>;
  kernel<<<blocks_of(rows.R), kBlock, 0, stream_of(rows.stream)>>>(
      rows, static_cast<const bf16*>(z), static_cast<const bf16*>(da), pair_weight,
      static_cast<const bf16*>(G), static_cast<const bf16*>(b_out), I, C, static_cast<bf16*>(dz),
      static_cast<bf16*>(ga), d_pair);
  return launched();
}

bool combine_rows_cuda(const ExpertRows& rows, const void* y, const float* pair_weight,
                       const void* b_out, int64_t width, void* out) {
  if (rows.T == 0) return true;
  const int64_t parts = parts_of(width);
  combine_kernel<<<blocks_of(rows.T * parts), kBlock, 0, stream_of(rows.stream)>>>(
      rows, static_cast<const bf16*>(y), pair_weight, static_cast<const bf16*>(b_out), width, parts,
      static_cast<bf16*>(out));
  return launched();
}

bool sum_rows(const ExpertRows& rows, const void* v, const float* pair_weight, int64_t width,
              void* out) {
  const dim3 grid(static_cast<unsigned>((width + kWarp - 1) / kWarp),
                  static_cast<unsigned>(rows.E));
  sum_rows_kernel<<<grid, kBlock, 0, stream_of(rows.stream)>>>(
      rows, static_cast<const bf16*>(v), pair_weight, width, static_cast<bf16*>(out));
  return launched();
}

bool zero_unused(const ExpertRows& rows, int64_t size, void* weights) {
  const dim3 grid(32, static_cast<unsigned>(rows.E));
  zero_unused_kernel<<<grid, 256, 0, stream_of(rows.stream)>>>(rows, size,
                                                               static_cast<bf16*>(weights));
  return launched();
}

}  // namespace sigma::kernels
