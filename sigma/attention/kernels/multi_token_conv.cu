// Depthwise convolutions of keys and values, and shifts of outputs (multi_token_conv.h). A thread has
// 8 channels of a token: one 16-byte access of 16-bit elements. Neighbours are read through the
// caches: a block's tokens share them.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "sigma/attention/kernels/multi_token_conv.h"
#include "sigma/attention/kernels/multi_token_line.h"

namespace sigma::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kChunk = 6;      // query steps a thread sums at once
constexpr int kTapsPart = 64;  // tokens of a block's part of the gradient of w
constexpr int kTapThreads = 384;

__device__ void load8(float (&to)[8], const float* x) {
  const float4 a = reinterpret_cast<const float4*>(x)[0], b = reinterpret_cast<const float4*>(x)[1];
  to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w;
  to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}
__device__ void store8(float* to, const float (&x)[8]) {
  reinterpret_cast<float4*>(to)[0] = make_float4(x[0], x[1], x[2], x[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(x[4], x[5], x[6], x[7]);
}
__device__ float2 unpack(__nv_bfloat162 x) { return __bfloat1622float2(x); }
__device__ float2 unpack(__half2 x) { return __half22float2(x); }
__device__ void pack2(__nv_bfloat162& to, float a, float b) { to = __floats2bfloat162_rn(a, b); }
__device__ void pack2(__half2& to, float a, float b) { to = __floats2half2_rn(a, b); }
template <class Pair>
struct alignas(16) Eight {
  Pair pair[4];
};
template <class Pair>
__device__ void load_pairs(float (&to)[8], const void* x) {
  const Eight<Pair> e = *static_cast<const Eight<Pair>*>(x);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 f = unpack(e.pair[i]);
    to[2 * i] = f.x, to[2 * i + 1] = f.y;
  }
}
template <class Pair>
__device__ void store_pairs(void* to, const float (&x)[8]) {
  Eight<Pair> e;
#pragma unroll
  for (int i = 0; i < 4; ++i) pack2(e.pair[i], x[2 * i], x[2 * i + 1]);
  *static_cast<Eight<Pair>*>(to) = e;
}
__device__ void load8(float (&to)[8], const __nv_bfloat16* x) { load_pairs<__nv_bfloat162>(to, x); }
__device__ void load8(float (&to)[8], const __half* x) { load_pairs<__half2>(to, x); }
__device__ void store8(__nv_bfloat16* to, const float (&x)[8]) {
  store_pairs<__nv_bfloat162>(to, x);
}
__device__ void store8(__half* to, const float (&x)[8]) { store_pairs<__half2>(to, x); }

// Without a branch, so that the loads of several steps are under way at once.
template <class T>
__device__ void load8_or_0(float (&to)[8], const T* x, bool there) {
#pragma unroll
  for (int e = 0; e < 8; ++e) to[e] = 0;
  if (there) load8(to, x);
}

// Where a token stands; tokens off the grid have only themselves.
struct Place {
  int token, f, y, x;
  bool alone;
  __device__ Place(const TokenGrid& g, int n) : token(n), f(0), y(0), x(n - g.before) {
    alone = x < 0 || x >= g.size();
    if (g.frames * g.height > 1) {
      y = x / g.width, x -= y * g.width;
      f = y / g.height, y -= f * g.height;
    }
  }
  // The token `sign` steps back, or -1.
  __device__ int back(const TokenGrid& g, const StepList& list, int i, int sign) const {
    const int df = sign * list.step[i].f, dy = sign * list.step[i].y, dx = sign * list.step[i].x;
    if (alone) return (df | dy | dx) == 0 ? token : -1;
    if (unsigned(f - df) >= unsigned(g.frames) || unsigned(y - dy) >= unsigned(g.height) ||
        unsigned(x - dx) >= unsigned(g.width))
      return -1;
    return token - (df * g.height + dy) * g.width - dx;
  }
};

// Grid (tokens, heads, chunks of query steps).
template <class T>
__global__ void __launch_bounds__(kThreads) convolve_kernel(const WideConvolution c) {
  extern __shared__ float w[];  // [b][kChunk]
  const int r0 = blockIdx.z * kChunk, taps = c.keys.count;
  const int64_t bh = blockIdx.y;
  const float* weights = c.w + (c.first + bh) % c.H * c.R * taps;
  for (int i = threadIdx.x; i < taps * kChunk; i += kThreads)
    w[i] = r0 + i % kChunk < c.R ? weights[(r0 + i % kChunk) * taps + i / kChunk] : 0;
  __syncthreads();
  const int units = int(c.D / 8), N = c.grid.tokens();
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int n = int(i / units), d = int(i % units) * 8;
  if (n >= N) return;
  const Place place(c.grid, n);
  const T* x = static_cast<const T*>(c.x) + bh * N * c.D + d;
  float sum[kChunk][8] = {};
  for (int b = 0; b < taps; ++b) {
    const int from = place.back(c.grid, c.keys, b, c.sign);
    if (from < 0) continue;
    float value[8];
    load8(value, x + int64_t(from) * c.D);
#pragma unroll
    for (int r = 0; r < kChunk; ++r)
#pragma unroll
      for (int e = 0; e < 8; ++e) sum[r][e] = fmaf(w[b * kChunk + r], value[e], sum[r][e]);
  }
#pragma unroll
  for (int r = 0; r < kChunk; ++r)
    if (r0 + r < c.R) store8(static_cast<T*>(c.wide) + wide_at(c, bh, r0 + r, n) + d, sum[r]);
}

// Grid (tokens, heads).
template <class T>
__global__ void __launch_bounds__(kThreads) gradient_kernel(const WideConvolution c) {
  extern __shared__ float w[];  // [r][b]
  const int taps = c.keys.count;
  const int64_t bh = blockIdx.y;
  for (int i = threadIdx.x; i < c.R * taps; i += kThreads)
    w[i] = c.w[(c.first + bh) % c.H * c.R * taps + i];
  __syncthreads();
  const int units = int(c.D / 8), N = c.grid.tokens();
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int n = int(i / units), d = int(i % units) * 8;
  if (n >= N) return;
  const Place place(c.grid, n);
  const T* wide = static_cast<const T*>(c.gwide) + d;
  float sum[8] = {};
  for (int b = 0; b < taps; ++b) {
    const int from = place.back(c.grid, c.keys, b, -c.sign);
    if (from < 0) continue;
    const T* row = wide + wide_at(c, bh, 0, from);
    const int64_t step = wide_at(c, 0, 1, 0);
#pragma unroll 6
    for (int r = 0; r < c.R; ++r) {
      float value[8];
      load8(value, row + r * step);
#pragma unroll
      for (int e = 0; e < 8; ++e) sum[e] = fmaf(w[r * taps + b], value[e], sum[e]);
    }
  }
  store8(static_cast<T*>(c.gx) + (bh * N + n) * c.D + d, sum);
}

// Partial gradients of w: grid (parts of kTapsPart tokens, heads, chunks of query steps); a warp takes
// every 12th key step, its lanes the tokens and channels. scratch [B * H,part,R,b].
template <class T>
__global__ void __launch_bounds__(kTapThreads) taps_kernel(const WideConvolution c) {
  const int units = int(c.D / 8), N = c.grid.tokens(), taps = c.keys.count;
  const int64_t bh = blockIdx.y;
  const int r0 = blockIdx.z * kChunk, lane = threadIdx.x % 32;
  const int first = blockIdx.x * kTapsPart, rows = min(kTapsPart, N - first);
  const T* x = static_cast<const T*>(c.x) + bh * N * c.D;
  const T* wide = static_cast<const T*>(c.gwide);
  for (int b = threadIdx.x / 32; b < taps; b += kTapThreads / 32) {
    float sum[kChunk] = {};
#pragma unroll 2
    for (int i = lane; i < rows * units; i += 32) {
      const int n = first + i / units, d = i % units * 8;
      const int from = Place(c.grid, n).back(c.grid, c.keys, b, c.sign);
      float value[8];
      load8_or_0(value, x + int64_t(from) * c.D + d, from >= 0);
#pragma unroll
      for (int r = 0; r < kChunk; ++r) {
        float g[8];
        load8_or_0(g, wide + wide_at(c, bh, r0 + r, n) + d, r0 + r < c.R);
#pragma unroll
        for (int e = 0; e < 8; ++e) sum[r] = fmaf(g[e], value[e], sum[r]);
      }
    }
    float* out = c.scratch + (((c.first + bh) * gridDim.x + blockIdx.x) * c.R + r0) * taps + b;
#pragma unroll
    for (int r = 0; r < kChunk; ++r) {
      for (int far = 16; far > 0; far /= 2) sum[r] += __shfl_xor_sync(~0u, sum[r], far);
      if (lane == 0 && r0 + r < c.R) out[r * taps] = sum[r];
    }
  }
}

// A warp adds up the parts of one tap: lane l every 32nd of them, then a tree.
__global__ void __launch_bounds__(kThreads)
    taps_sum_kernel(const WideConvolution c, int parts, float* gw) {
  const int64_t i = int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const int64_t taps = int64_t(c.R) * c.keys.count;
  if (i >= c.H * taps) return;
  const int64_t h = i / taps, tap = i % taps;
  double sum = 0;
  for (int64_t p = threadIdx.x % 32; p < c.heads / c.H * parts; p += 32)
    sum += c.scratch[((p / parts * c.H + h) * parts + p % parts) * taps + tap];
  for (int far = 16; far > 0; far /= 2) sum += __shfl_xor_sync(~0u, sum, far);
  if (threadIdx.x % 32 == 0) gw[i] = float(sum);
}

// Grid (tokens, heads).
template <class T>
__global__ void __launch_bounds__(kThreads) shift_add_kernel(const WideShift s) {
  const int units = int(s.D / 8), N = s.grid.tokens(), R = s.queries.count;
  const int64_t bh = blockIdx.y, i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int n = int(i / units), d = int(i % units) * 8;
  if (n >= N) return;
  const Place place(s.grid, n);
  const T* wide = static_cast<const T*>(s.wide) + bh * R * N * s.D + d;
  float sum[8] = {};
#pragma unroll 6
  for (int r = 0; r < R; ++r) {
    const int from = place.back(s.grid, s.queries, r, 1);
    if (from < 0) continue;
    float value[8];
    load8(value, wide + (int64_t(r) * N + from) * s.D);
#pragma unroll
    for (int e = 0; e < 8; ++e) sum[e] += value[e];
  }
  store8(static_cast<T*>(s.out) + (bh * N + n) * s.D + d, sum);
}

// Grid (tokens by warps of 4, heads): 8 lanes have a token, and 64 channels at a time.
template <class T>
__global__ void __launch_bounds__(kThreads) shift_dot_kernel(const WideShift s) {
  const int N = s.grid.tokens(), R = s.queries.count;
  const int64_t bh = blockIdx.y;
  const int n = blockIdx.x * (kThreads / 8) + threadIdx.x / 8;
  float sum = 0;
  if (n < N) {
    const Place place(s.grid, n);
    const T* wide = static_cast<const T*>(s.wide) + (bh * R * N + n) * s.D;
    const T* x = static_cast<const T*>(s.x) + bh * N * s.D;
#pragma unroll 6
    for (int r = 0; r < R; ++r) {
      const int from = place.back(s.grid, s.queries, r, -1);
      if (from < 0) continue;
      for (int64_t d = threadIdx.x % 8 * 8; d < s.D; d += 64) {
        float a[8], b[8];
        load8(a, wide + int64_t(r) * N * s.D + d);
        load8(b, x + from * s.D + d);
#pragma unroll
        for (int e = 0; e < 8; ++e) sum = fmaf(a[e], b[e], sum);
      }
    }
  }
  for (int far = 4; far > 0; far /= 2) sum += __shfl_xor_sync(~0u, sum, far);
  if (n < N && threadIdx.x % 8 == 0) s.dot[bh * N + n] = sum;
}

int64_t parts_of(const WideConvolution& c) { return (c.grid.tokens() + kTapsPart - 1) / kTapsPart; }
int blocks(const TokenGrid& grid, int64_t D) {
  return int((grid.tokens() * (D / 8) + kThreads - 1) / kThreads);
}
template <class Call>
cudaError_t by_element(Element element, const Call& call) {
  if (element == Element::kBFloat16) call(__nv_bfloat16());
  else if (element == Element::kHalf) call(__half());
  else call(float());
  return cudaGetLastError();
}

}  // namespace

int64_t convolve_scratch(const WideConvolution& c) {
  return c.heads * parts_of(c) * c.R * c.keys.count;
}

cudaError_t convolve(const WideConvolution& c, cudaStream_t stream) {
  if (takes_line(c)) return line_convolve(c, stream);
  const dim3 grid(blocks(c.grid, c.D), unsigned(c.heads), (c.R + kChunk - 1) / kChunk);
  const size_t bytes = size_t(c.keys.count) * kChunk * sizeof(float);
  return by_element(c.element, [&](auto t) {
    convolve_kernel<decltype(t)><<<grid, kThreads, bytes, stream>>>(c);
  });
}

cudaError_t convolve_back(const WideConvolution& c, cudaStream_t stream) {
  if (takes_line(c)) return line_convolve_back(c, stream);
  const unsigned chunks = (c.R + kChunk - 1) / kChunk, parts = unsigned(parts_of(c));
  const size_t bytes = size_t(c.R) * c.keys.count * sizeof(float);
  return by_element(c.element, [&](auto t) {
    using T = decltype(t);
    const unsigned heads = unsigned(c.heads);
    if (c.gx != nullptr)
      gradient_kernel<T><<<dim3(blocks(c.grid, c.D), heads), kThreads, bytes, stream>>>(c);
    if (c.scratch != nullptr)
      taps_kernel<T><<<dim3(parts, heads, chunks), kTapThreads, 0, stream>>>(c);
  });
}

cudaError_t taps_gradient(const WideConvolution& c, float* gw, cudaStream_t stream) {
  const int64_t warps = c.H * c.R * c.keys.count;
  taps_sum_kernel<<<unsigned((warps * 32 + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      c, int(parts_of(c)), gw);
  return cudaGetLastError();
}

cudaError_t shift_add(const WideShift& s, cudaStream_t stream) {
  const dim3 grid(blocks(s.grid, s.D), unsigned(s.heads));
  return by_element(
      s.element, [&](auto t) { shift_add_kernel<decltype(t)><<<grid, kThreads, 0, stream>>>(s); });
}

cudaError_t shift_dot(const WideShift& s, cudaStream_t stream) {
  const dim3 grid((s.grid.tokens() + kThreads / 8 - 1) / (kThreads / 8), unsigned(s.heads));
  return by_element(
      s.element, [&](auto t) { shift_dot_kernel<decltype(t)><<<grid, kThreads, 0, stream>>>(s); });
}

}  // namespace sigma::kernels
