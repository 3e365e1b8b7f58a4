// Random numbers: counter-based, so there is no state to save.
//
// Element n (row-major inside its own sample) of sample i is a function of (seed, step, purpose,
// site, i, n) alone: the same at any batch size, on any device, after any resume. Nothing in sigma/
// draws from anywhere else.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <vector>

namespace sigma {

enum class Purpose : uint32_t {
  kInit = 1,
  kShuffle,
  kAugment,
  kTimes,
  kNoise,
  kLabelDrop,
  kDropout,
  kMask,
  kPrior = 16,
  kRestart,
  kLabel,
  kEval = 32,
  kBootstrap,
};

/// Seed and step of a draw. Step 0 is sampling (index = image number), steps from 1 are training
/// (index = sample in the global batch; for kTimes the group).
struct Rng {
  uint64_t seed = 0;
  uint64_t step = 0;
};

/// purpose << 24 | site; site (layer, sampler step, draw) below 2^24.
uint32_t random_stream(Purpose purpose, uint32_t site);

/// Standard normal numbers into `out` [B, ...] (float64, float32 or 16 bits; contiguous), one
/// sample a row; `indices` [B] int64 on the CPU. Computed in float64 and rounded once to float32,
/// then to a 16-bit dtype.
void fill_normal(const torch::Tensor& out, const Rng& rng, Purpose purpose, uint32_t site,
                 const torch::Tensor& indices);

/// Uniform numbers inside (0, 1), as fill_normal; float64 or float32.
void fill_uniform(const torch::Tensor& out, const Rng& rng, Purpose purpose, uint32_t site,
                  const torch::Tensor& indices);

/// bool [B]: true with probability p, one draw a sample.
torch::Tensor bernoulli(double p, const Rng& rng, Purpose purpose, uint32_t site,
                        const torch::Tensor& indices);

/// int64 [B]: whole numbers below n, one draw a sample.
torch::Tensor uniform_int(int64_t n, const Rng& rng, Purpose purpose, uint32_t site,
                          const torch::Tensor& indices);

/// The whole of `out` as the numbers of one sample key: initial weights (`sample` = a hash of the
/// parameter's name).
void fill_normal_keyed(const torch::Tensor& out, uint64_t seed, uint32_t stream, uint64_t sample);
void fill_uniform_keyed(const torch::Tensor& out, uint64_t seed, uint32_t stream, uint64_t sample);

/// A permutation of 0..n-1 (Fisher-Yates from the end), n < 2^32.
std::vector<int64_t> permutation(uint64_t seed, uint64_t epoch, int64_t n);

}  // namespace sigma
