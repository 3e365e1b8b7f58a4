// The convolutions of multi-token attention by wider heads (sigma/attention/multi_token_wide.h) on
// NVIDIA GPUs. Torch-free; all pointers are device memory.
//
// Tokens stand on a grid, with tokens before and after it that have no neighbours. "n - s" is the
// token one step s = (frames, rows, columns) back; off the grid there is none, and it counts as 0.
// With taps w[h,r,b], query steps a_r and key steps b:
//
//   convolve        wide[r,n] = sum_b w[r,b] x[n - b]            (keys; values: x[n + b])
//   convolve_back   gx[n] = sum_{r,b} w[r,b] gwide[r, n + b]     (values: n - b)
//                   gw[h,r,b] = sum_{batch,n,d} gwide[r,n,d] x[n - b, d]
//   shift_add       out[n] = sum_r wide[r, n - a_r]
//   shift_dot       dot[n] = sum_r wide[r,n] . x[n + a_r]
//
// Wide tensors are [heads,R,N,D]: R matrices of N rows; or, by_token, [heads,N,R,D]. Sums are float32 (gw over blocks: float64) in a
// fixed order, rounded once.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace sigma::kernels {

constexpr int kMaxSteps = 128;

enum class Element { kBFloat16, kHalf, kFloat };

struct StepList {
  int count = 1;
  struct {
    int8_t f, y, x, unused;
  } step[kMaxSteps] = {};
};

struct TokenGrid {
  int before = 0, frames = 1, height = 1, width = 0, after = 0;
  __host__ __device__ int size() const { return frames * height * width; }
  __host__ __device__ int tokens() const { return before + size() + after; }
};

// All of B * H heads, or a run of them: the tensors are those of the run.
struct WideConvolution {
  int64_t H = 0, D = 0;          // D: a multiple of 8
  int64_t first = 0, heads = 0;  // of B * H
  TokenGrid grid;
  Element element = Element::kBFloat16;
  int R = 1;                 // query steps
  StepList keys;             // b; R * keys.count <= 4096
  int sign = 1;              // 1: keys, n - b; -1: values, n + b
  bool by_token = false;     // wide and gwide
  const float* w = nullptr;  // [H,R,b]
  const void* x = nullptr;   // [heads,N,D]
  void* wide = nullptr;      // [heads,R,N,D]
  const void* gwide = nullptr;
  void* gx = nullptr;        // null: not wanted
  float* scratch = nullptr;  // convolve_scratch floats for all heads; null: gw is not wanted
};

cudaError_t convolve(const WideConvolution& c, cudaStream_t stream);
/// Writes gx, and to scratch the parts of gw, which taps_gradient then adds up: after all runs, with
/// first 0 and all heads.
cudaError_t convolve_back(const WideConvolution& c, cudaStream_t stream);
int64_t convolve_scratch(const WideConvolution& c);
cudaError_t taps_gradient(const WideConvolution& c, float* gw, cudaStream_t stream);

// Wide tensors are [heads,R,N,D].
struct WideShift {
  int64_t heads = 0, D = 0;
  TokenGrid grid;
  Element element = Element::kBFloat16;
  StepList queries;            // a_r
  const void* wide = nullptr;  // [heads,R,N,D]
  void* out = nullptr;         // shift_add: [heads,N,D]
  const void* x = nullptr;     // shift_dot: [heads,N,D]
  float* dot = nullptr;        // [heads,N]
};

cudaError_t shift_add(const WideShift& s, cudaStream_t stream);
cudaError_t shift_dot(const WideShift& s, cudaStream_t stream);

}  // namespace sigma::kernels
