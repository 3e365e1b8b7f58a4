// Convolutions along a sequence as products with band matrices. For 16 tokens of step r,
//
//   wide[r, n0 + m] = sum_k A[m,k] x[first + k],  A[m,k] = u[k - m] for 0 <= k - m < taps, else 0
//
// 32 rows of x reach: A is 16 x 32, two matrix instructions deep, u the taps in the order of rows.
// A is the sum of two 16-bit matrices (a tap, and what its rounding left), so the taps keep 16 bits and
// more. The gradient of x is the same with the taps turned round, summed over the steps. The gradient
// of the taps is the sums along the diagonals of gwide[r] x^T:
//
//   gu[t] = sum_m C[m, m + t],  C[m,k] = sum over tiles of 16 tokens, and channels, gwide[n0 + m] x[first + k]
//
// A block has 64 tokens of a head, 8 warps.
#include "sigma/attention/kernels/mma.h"
#include "sigma/attention/kernels/multi_token_line.h"

namespace sigma::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kMost = 8;               // query steps
constexpr int kSpan = kTapsPart + 16;  // rows that 64 tokens reach
constexpr int kRowsBytes = kSpan * 128;
constexpr int kBandBytes = 2 * 2 * 32 * 16;  // A of one step: [half of k][rounded, rest][lane]

// Row of x, or gwide, that A's column 0 stands for, less the first token.
__host__ __device__ int first_row(const WideConvolution& c, bool back) {
  const int b0 = c.keys.step[0].x, last = b0 + c.keys.count - 1;
  return (c.sign > 0) == back ? b0 : -last;
}
// The key step of distance t = k - m.
__device__ int tap(const WideConvolution& c, bool back, int t) {
  return (c.sign > 0) != back ? c.keys.count - 1 - t : t;
}

// Rows first .. first + 79 of a matrix of N rows and 64 columns; zeros off it.
template <class T>
__device__ void load_rows(Tile<64> tile, const T* x, int64_t step, int first, int N) {
  for (int i = threadIdx.x; i < kSpan * 8; i += kThreads) {
    const int n = first + i / 8;
    const bool there = n >= 0 && n < N;
    copy_16(tile.at(i / 8, i % 8), x + (there ? n : 0) * step + i % 8 * 8, there);
  }
}

__device__ float rounded(__nv_bfloat16, float x) { return __bfloat162float(__float2bfloat16(x)); }
__device__ float rounded(__half, float x) { return __half2float(__float2half(x)); }

// A of all steps, as operands of the lanes.
template <class T>
__device__ void make_bands(uint4* bands, const WideConvolution& c, int64_t head, bool back) {
  const int taps = c.keys.count;
  const float* w = c.w + (c.first + head) % c.H * c.R * taps;
  for (int i = threadIdx.x; i < c.R * 64; i += kThreads) {
    const int lane = i % 32, half = i / 32 % 2, r = i / 64;
    uint32_t near[4], rest[4];
    for (int j = 0; j < 4; ++j) {
      float u[2], left[2];
      for (int e = 0; e < 2; ++e) {
        const int m = lane / 4 + j % 2 * 8, k = half * 16 + lane % 4 * 2 + j / 2 * 8 + e;
        const bool inside = k >= m && k - m < taps;
        const float weight = inside ? w[r * taps + tap(c, back, k - m)] : 0;
        u[e] = rounded(T(), weight);
        left[e] = weight - u[e];
      }
      near[j] = pack<T>(u[0], u[1]);
      rest[j] = pack<T>(left[0], left[1]);
    }
    uint4* to = bands + (r * 2 + half) * 64 + lane;
    to[0] = make_uint4(near[0], near[1], near[2], near[3]);
    to[32] = make_uint4(rest[0], rest[1], rest[2], rest[3]);
  }
}

// c [16, 16 n] += A of step r times rows row .. row + 31 of the tile, columns 8 unit and on.
template <class T, int n>
__device__ void add_band(float (&c)[2 * n][4], const uint4* bands, int r, Tile<64> tile, int row,
                         int unit) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint4 a = bands[(r * 2 + half) * 64 + lane], b = bands[(r * 2 + half) * 64 + 32 + lane];
    const uint32_t near[4] = {a.x, a.y, a.z, a.w}, rest[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int j = 0; j < n; ++j) {
      uint32_t f[4];
      load_matrix_transposed(f, tile.at(row + half * 16 + lane % 16, unit + 2 * j + lane / 16));
      mma<T>(c[2 * j], near, f[0], f[1]);
      mma<T>(c[2 * j], rest, f[0], f[1]);
      mma<T>(c[2 * j + 1], near, f[2], f[3]);
      mma<T>(c[2 * j + 1], rest, f[2], f[3]);
    }
  }
}

// A warp's sums [16, 8 n], rounded, to rows of a tile.
template <class T, int n>
__device__ void put(Tile<64> tile, int row, int unit, const float (&c)[n][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < n; ++j)
#pragma unroll
    for (int e = 0; e < 2; ++e)
      asm volatile(
          "st.shared.b32 [%0], %1;" ::"r"(tile.at(row + lane / 4 + 8 * e, unit + j) + lane % 4 * 4),
          "r"(pack<T>(c[j][2 * e], c[j][2 * e + 1]))
          : "memory");
}
__device__ uint4 get(Tile<64> tile, int row, int unit) {
  uint4 x;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(tile.at(row, unit))
               : "memory");
  return x;
}

// Grid (tokens by 64, heads).
template <class T>
__global__ void __launch_bounds__(kThreads) line_kernel(const WideConvolution c) {
  extern __shared__ __align__(128) char memory[];
  const Tile<64> x{shared_address(memory)};
  uint4* bands = reinterpret_cast<uint4*>(memory + kRowsBytes);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, N = c.grid.tokens();
  const Tile<64> out{shared_address(memory + kRowsBytes + c.R * kBandBytes) + warp * 2048};
  const int n0 = blockIdx.x * kTapsPart;
  const int64_t head = blockIdx.y;
  load_rows(x, static_cast<const T*>(c.x) + head * N * 64, 64, n0 + first_row(c, false), N);
  make_bands<T>(bands, c, head, false);
  wait_copies();
  __syncthreads();
  for (int item = warp; item < 4 * c.R; item += kThreads / 32) {
    const int r = item / 4, row = item % 4 * 16;
    float sum[8][4] = {};
    add_band<T, 4>(sum, bands, r, x, row, 0);
    put<T>(out, 0, 0, sum);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int m = i * 4 + lane / 8, n = n0 + row + m;
      if (n < N)
        *reinterpret_cast<uint4*>(static_cast<T*>(c.wide) + wide_at(c, head, r, n) + lane % 8 * 8) =
            get(out, m, lane % 8);
    }
    __syncwarp();
  }
}

// The gradients of x and, in parts, of the taps. Grid (tokens by 64, heads).
template <class T>
__global__ void __launch_bounds__(kThreads) line_back_kernel(const WideConvolution c) {
  extern __shared__ __align__(128) char memory[];
  const uint32_t base = shared_address(memory);
  const Tile<64> x{base};
  char* behind = memory + (1 + c.R) * kRowsBytes;
  const Tile<64> out{shared_address(behind)};
  uint4* bands = reinterpret_cast<uint4*>(behind + 8192);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, N = c.grid.tokens();
  const int n0 = blockIdx.x * kTapsPart, first = first_row(c, true), taps = c.keys.count;
  const int64_t head = blockIdx.y;
  const auto wide = [&](int r) { return Tile<64>{base + (1 + r) * kRowsBytes}; };
  for (int r = 0; r < c.R; ++r)
    load_rows(wide(r), static_cast<const T*>(c.gwide) + wide_at(c, head, r, 0),
              c.by_token ? 64 * c.R : 64, n0 + first, N);
  load_rows(x, static_cast<const T*>(c.x) + head * N * 64, 64, n0 + first_row(c, false), N);
  make_bands<T>(bands, c, head, true);
  wait_copies();
  __syncthreads();

  if (c.gx != nullptr) {
    const int row = warp % 4 * 16, unit = warp / 4 * 4;
    float sum[4][4] = {};
    for (int r = 0; r < c.R; ++r) add_band<T, 2>(sum, bands, r, wide(r), row, unit);
    put<T>(out, row, unit, sum);
    __syncthreads();
    for (int i = threadIdx.x; i < kTapsPart * 8; i += kThreads)
      if (n0 + i / 8 < N)
        *reinterpret_cast<uint4*>(static_cast<T*>(c.gx) + (head * N + n0) * 64 + i * 8) =
            get(out, i / 8, i % 8);
  }
  if (c.scratch == nullptr) return;
  __syncthreads();  // the sums take the place of the output and the bands
  const int r = warp;
  if (r >= c.R) return;
  float sum[4][4] = {};
#pragma unroll
  for (int row = 0; row < kTapsPart; row += 16)
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      uint32_t a[4];
      load_matrix(a, wide(r).at(row - first + lane % 16, 2 * k + lane / 16));
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        uint32_t f[4];
        load_matrix(f, x.at(row + 16 * j + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
        mma<T>(sum[2 * j], a, f[0], f[1]);
        mma<T>(sum[2 * j + 1], a, f[2], f[3]);
      }
    }
  float* C = reinterpret_cast<float*>(behind) + warp * 16 * 33;
#pragma unroll
  for (int j = 0; j < 4; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      C[(lane / 4 + e / 2 * 8) * 33 + 8 * j + lane % 4 * 2 + e % 2] = sum[j][e];
  __syncwarp();
  if (lane >= taps) return;
  float total = 0;
  for (int m = 0; m < 16; ++m) total += C[m * 33 + m + lane];
  c.scratch[(((c.first + head) * gridDim.x + blockIdx.x) * c.R + r) * taps + tap(c, false, lane)] =
      total;
}

template <class T>
cudaError_t launch(const WideConvolution& c, bool back, cudaStream_t stream) {
  const auto kernel = back ? line_back_kernel<T> : line_kernel<T>;
  const int room = back ? (1 + c.R) * kRowsBytes + 8192 + c.R * kBandBytes
                        : kRowsBytes + c.R * kBandBytes + 8 * 2048;
  const int sums = back ? (1 + c.R) * kRowsBytes + 8 * 16 * 33 * 4 : 0;
  const int bytes = room > sums ? room : sums;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const dim3 grid(unsigned((c.grid.tokens() + kTapsPart - 1) / kTapsPart), unsigned(c.heads));
  kernel<<<grid, kThreads, bytes, stream>>>(c);
  return cudaGetLastError();
}

cudaError_t by_type(const WideConvolution& c, bool back, cudaStream_t stream) {
  return c.element == Element::kHalf ? launch<__half>(c, back, stream)
                                     : launch<__nv_bfloat16>(c, back, stream);
}

}  // namespace

bool takes_line(const WideConvolution& c) {
  if (c.element == Element::kFloat || c.D != 64 || c.R > kMost || c.keys.count > 17) return false;
  if (c.grid.frames * c.grid.height != 1 || c.grid.before + c.grid.after != 0) return false;
  for (int i = 0; i < c.keys.count; ++i)
    if (c.keys.step[i].f != 0 || c.keys.step[i].y != 0 || c.keys.step[i].x != c.keys.step[0].x + i)
      return false;
  const int first = first_row(c, true);
  return first <= 0 && first >= -16;  // the rows of gwide hold the block's own tokens
}

cudaError_t line_convolve(const WideConvolution& c, cudaStream_t stream) {
  return by_type(c, false, stream);
}
cudaError_t line_convolve_back(const WideConvolution& c, cudaStream_t stream) {
  return by_type(c, true, stream);
}

}  // namespace sigma::kernels
