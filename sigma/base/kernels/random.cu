#include <cuda_runtime.h>

#include "sigma/base/kernels/random.h"
#include "sigma/base/philox.h"

namespace sigma::kernels {
namespace {

constexpr int kThreads = 256;

// A thread fills four elements: one Philox block.
template <typename T, bool kNormal>
__global__ void fill(T* out, int64_t rows, int64_t width, uint64_t seed, uint32_t stream,
                     const uint64_t* samples) {
  const int64_t blocks = (width + 3) / 4;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= rows * blocks) return;
  const int64_t row = index / blocks;
  const int64_t block = index % blocks;
  const PhiloxWords words = philox(seed, stream, samples[row], static_cast<uint32_t>(block));
  T values[4];
  if constexpr (kNormal) {
    double z[4];
    normal_pair(words.w[0], words.w[1], &z[0], &z[1]);
    normal_pair(words.w[2], words.w[3], &z[2], &z[3]);
    for (int i = 0; i < 4; ++i) values[i] = static_cast<T>(z[i]);
  } else if constexpr (sizeof(T) == 8) {
    for (int i = 0; i < 4; ++i) values[i] = uniform_double(words.w[i]);
  } else {
    for (int i = 0; i < 4; ++i) values[i] = uniform_float(words.w[i]);
  }
  for (int64_t i = 0; i < 4 && block * 4 + i < width; ++i)
    out[row * width + block * 4 + i] = values[i];
}

template <typename T>
bool launch(T* out, bool normal, int64_t rows, int64_t width, uint64_t seed, uint32_t stream,
            const uint64_t* samples, cudaStream_t cuda_stream) {
  const int64_t blocks = rows * ((width + 3) / 4);
  const auto grid = static_cast<unsigned>((blocks + kThreads - 1) / kThreads);
  if (normal)
    fill<T, true><<<grid, kThreads, 0, cuda_stream>>>(out, rows, width, seed, stream, samples);
  else fill<T, false><<<grid, kThreads, 0, cuda_stream>>>(out, rows, width, seed, stream, samples);
  return cudaGetLastError() == cudaSuccess;
}

}  // namespace

bool fill_random_cuda(void* out, bool is_double, bool normal, int64_t rows, int64_t width,
                      uint64_t seed, uint32_t stream, const uint64_t* samples, void* cuda_stream) {
  const auto s = static_cast<cudaStream_t>(cuda_stream);
  if (is_double)
    return launch(static_cast<double*>(out), normal, rows, width, seed, stream, samples, s);
  return launch(static_cast<float*>(out), normal, rows, width, seed, stream, samples, s);
}

}  // namespace sigma::kernels
