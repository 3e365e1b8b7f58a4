// Philox4x32-10 and the two distributions built on it: torch-free, the same bits on the host and on
// the device.
//
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Counter {block,
// stream, lo(sample), hi(sample)}, key {lo(seed), hi(seed)}. Normal draws use Box-Muller in float64
// with + - * / sqrt only, each rounded alone: compile with -ffp-contract=off (host) and -fmad=false
// (device).
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define SIGMA_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SIGMA_HOST_DEVICE inline
#endif

namespace sigma {

/// Four words: one block of the stream.
struct PhiloxWords {
  uint32_t w[4];
};

/// Block `block` of the numbers of `sample` in `stream` under `seed`.
SIGMA_HOST_DEVICE PhiloxWords philox(uint64_t seed, uint32_t stream, uint64_t sample,
                                     uint32_t block) {
  uint32_t c0 = block;
  uint32_t c1 = stream;
  uint32_t c2 = static_cast<uint32_t>(sample);
  uint32_t c3 = static_cast<uint32_t>(sample >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed);
  uint32_t k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = 0xD2511F53ull * c0;
    const uint64_t p1 = 0xCD9E8D57ull * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

/// (w + 1/2) 2^-32: exact, inside (0, 1).
SIGMA_HOST_DEVICE double uniform_double(uint32_t w) { return (w + 0.5) * 0x1p-32; }

/// ((w >> 9) + 1/2) 2^-23: exact, inside (0, 1).
SIGMA_HOST_DEVICE float uniform_float(uint32_t w) {
  return (static_cast<float>(w >> 9) + 0.5f) * 0x1p-23f;
}

/// A whole number below n from the first two words of a block: the high 64 bits of (w0 | w1 << 32)
/// n.
SIGMA_HOST_DEVICE uint64_t uniform_below(const PhiloxWords& words, uint64_t n) {
  const uint64_t x = words.w[0] | (static_cast<uint64_t>(words.w[1]) << 32);
  const uint64_t x_lo = x & 0xffffffffu;
  const uint64_t x_hi = x >> 32;
  const uint64_t n_lo = n & 0xffffffffu;
  const uint64_t n_hi = n >> 32;
  const uint64_t middle = x_hi * n_lo + ((x_lo * n_lo) >> 32);
  const uint64_t middle2 = x_lo * n_hi + (middle & 0xffffffffu);
  return x_hi * n_hi + (middle >> 32) + (middle2 >> 32);
}

namespace philox_detail {

// ln(u), u = (w + 1/2) 2^-32 with w a 32-bit word, by s = (m-1)/(m+1) and the series of atanh.
SIGMA_HOST_DEVICE double log_uniform(uint32_t w) {
  int exponent = 0;
  double m = frexp(uniform_double(w), &exponent);
  if (m < 0.70710678118654752440) {
    m = m * 2.0;
    exponent = exponent - 1;
  }
  const double s = (m - 1.0) / (m + 1.0);
  const double z = s * s;
  double p = 1.0 / 21.0;
  for (int k = 9; k >= 0; --k) p = p * z + 1.0 / (2 * k + 1);
  return exponent * 0.69314718055994530942 + (2.0 * s) * p;
}

// sin and cos of 2 pi u.
SIGMA_HOST_DEVICE void sincos_turn(double u, double* sine, double* cosine) {
  const double t = 4.0 * u;
  const double q = floor(t + 0.5);
  const double a = (t - q) * 1.57079632679489661923;
  const double b = a * a;
  constexpr double kSin[8] = {
      1.0,          -1.0 / 6,        1.0 / 120,         -1.0 / 5040,
      1.0 / 362880, -1.0 / 39916800, 1.0 / 6227020800., -1.0 / 1307674368000.};
  constexpr double kCos[9] = {1.0,
                              -1.0 / 2,
                              1.0 / 24,
                              -1.0 / 720,
                              1.0 / 40320,
                              -1.0 / 3628800,
                              1.0 / 479001600,
                              -1.0 / 87178291200.,
                              1.0 / 20922789888000.};
  double s = kSin[7];
  for (int k = 6; k >= 0; --k) s = s * b + kSin[k];
  s = s * a;
  double c = kCos[8];
  for (int k = 7; k >= 0; --k) c = c * b + kCos[k];
  switch (static_cast<int>(q) & 3) {
    case 0: *sine = s, *cosine = c; break;
    case 1: *sine = c, *cosine = -s; break;
    case 2: *sine = -s, *cosine = -c; break;
    default: *sine = -c, *cosine = s; break;
  }
}

}  // namespace philox_detail

/// Two standard normal draws from two words (Box-Muller, float64).
SIGMA_HOST_DEVICE void normal_pair(uint32_t w0, uint32_t w1, double* z0, double* z1) {
  const double r = sqrt(-2.0 * philox_detail::log_uniform(w0));
  double sine = 0;
  double cosine = 0;
  philox_detail::sincos_turn(uniform_double(w1), &sine, &cosine);
  *z0 = r * cosine;
  *z1 = r * sine;
}

}  // namespace sigma
