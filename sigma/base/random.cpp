#include "sigma/base/random.h"

#include <ATen/Parallel.h>

#include <numeric>

#include "sigma/base/error.h"
#include "sigma/base/philox.h"
#ifdef SIGMA_CUDA
#include <c10/cuda/CUDAStream.h>

#include "sigma/base/kernels/random.h"
#endif

namespace sigma {
namespace {

using torch::Tensor;

constexpr int64_t kMaxElements = int64_t{1} << 34;
constexpr int64_t kGrain = 4096;  // elements a thread takes at least

enum class Distribution { kNormal, kUniform };

// Elements [begin, end) of one sample into `out`; begin is a multiple of 4.
template <typename T>
void fill_range(T* out, int64_t begin, int64_t end, Distribution kind, uint64_t seed,
                uint32_t stream, uint64_t sample) {
  for (int64_t n = begin; n < end; n += 4) {
    const PhiloxWords words = philox(seed, stream, sample, static_cast<uint32_t>(n / 4));
    T values[4];
    if (kind == Distribution::kNormal) {
      double z[4];
      normal_pair(words.w[0], words.w[1], &z[0], &z[1]);
      normal_pair(words.w[2], words.w[3], &z[2], &z[3]);
      for (int i = 0; i < 4; ++i) values[i] = static_cast<T>(z[i]);
    } else {
      for (int i = 0; i < 4; ++i) {
        if constexpr (std::is_same_v<T, double>) values[i] = uniform_double(words.w[i]);
        else values[i] = uniform_float(words.w[i]);
      }
    }
    const int64_t count = std::min<int64_t>(4, end - n);
    for (int64_t i = 0; i < count; ++i) out[n + i] = values[i];
  }
}

template <typename T>
void fill_cpu(T* out, int64_t rows, int64_t width, Distribution kind, uint64_t seed,
              uint32_t stream, const uint64_t* samples) {
  // Blocks of four elements, counted over all rows, are shared out among the threads.
  const int64_t blocks = (width + 3) / 4;
  at::parallel_for(0, rows * blocks, kGrain / 4, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t row = begin / blocks;
      const int64_t stop = std::min(end, (row + 1) * blocks);
      fill_range(out + row * width, (begin - row * blocks) * 4,
                 std::min(width, (stop - row * blocks) * 4), kind, seed, stream, samples[row]);
      begin = stop;
    }
  });
}

void fill(const Tensor& out, Distribution kind, uint64_t seed, uint32_t stream,
          const std::vector<uint64_t>& samples) {
  const auto rows = static_cast<int64_t>(samples.size());
  if (out.numel() == 0) return;
  SIGMA_CHECK(kFailure, out.is_contiguous(), "random fill: expected a contiguous tensor");
  const int64_t width = out.numel() / rows;
  SIGMA_CHECK(kFailure, width < kMaxElements,
              "random fill: expected fewer than 2^34 elements a sample, got {}", width);
  if (out.scalar_type() == torch::kBFloat16 || out.scalar_type() == torch::kHalf) {
    Tensor wide = torch::empty(out.sizes(), out.options().dtype(torch::kFloat));
    fill(wide, kind, seed, stream, samples);
    out.copy_(wide);
    return;
  }
  const bool is_double = out.scalar_type() == torch::kDouble;
  SIGMA_CHECK(kFailure, is_double || out.scalar_type() == torch::kFloat,
              "random fill: expected a floating dtype, got {}", torch::toString(out.scalar_type()));
  if (out.is_cuda()) {
    const auto options = torch::TensorOptions().dtype(torch::kInt64);
    Tensor keys =
        torch::from_blob(const_cast<uint64_t*>(samples.data()), {rows}, options).to(out.device());
#ifdef SIGMA_CUDA
    const bool launched = kernels::fill_random_cuda(
        out.data_ptr(), is_double, kind == Distribution::kNormal, rows, width, seed, stream,
        reinterpret_cast<const uint64_t*>(keys.data_ptr<int64_t>()),
        c10::cuda::getCurrentCUDAStream().stream());
    SIGMA_CHECK(kDevice, launched, "random fill: the CUDA launch failed");
#endif
  } else if (is_double) {
    fill_cpu(out.data_ptr<double>(), rows, width, kind, seed, stream, samples.data());
  } else {
    fill_cpu(out.data_ptr<float>(), rows, width, kind, seed, stream, samples.data());
  }
}

std::vector<uint64_t> sample_keys(const Rng& rng, const Tensor& indices) {
  SIGMA_CHECK(kFailure,
              indices.dim() == 1 && indices.scalar_type() == torch::kInt64 && indices.is_cpu(),
              "random fill: expected int64 indices [B] on the CPU");
  const Tensor flat = indices.contiguous();
  std::vector<uint64_t> keys(static_cast<size_t>(flat.numel()));
  for (size_t i = 0; i < keys.size(); ++i) {
    keys[i] = (rng.step << 32) | static_cast<uint32_t>(flat.data_ptr<int64_t>()[i]);
  }
  return keys;
}

void fill_rows(const Tensor& out, Distribution kind, const Rng& rng, Purpose purpose, uint32_t site,
               const Tensor& indices) {
  SIGMA_CHECK(kFailure, out.dim() >= 1 && out.size(0) == indices.numel(),
              "random fill: expected {} rows, one an index, got {}", indices.numel(),
              out.dim() ? out.size(0) : 0);
  fill(out, kind, rng.seed, random_stream(purpose, site), sample_keys(rng, indices));
}

}  // namespace

uint32_t random_stream(Purpose purpose, uint32_t site) {
  SIGMA_CHECK(kFailure, site < (1u << 24), "random stream: expected a site below 2^24, got {}",
              site);
  return static_cast<uint32_t>(purpose) << 24 | site;
}

void fill_normal(const Tensor& out, const Rng& rng, Purpose purpose, uint32_t site,
                 const Tensor& indices) {
  fill_rows(out, Distribution::kNormal, rng, purpose, site, indices);
}

void fill_uniform(const Tensor& out, const Rng& rng, Purpose purpose, uint32_t site,
                  const Tensor& indices) {
  fill_rows(out, Distribution::kUniform, rng, purpose, site, indices);
}

Tensor bernoulli(double p, const Rng& rng, Purpose purpose, uint32_t site, const Tensor& indices) {
  const auto threshold = static_cast<uint64_t>(p * 0x1p32);
  const uint32_t stream = random_stream(purpose, site);
  const std::vector<uint64_t> keys = sample_keys(rng, indices);
  Tensor out = torch::empty({static_cast<int64_t>(keys.size())}, torch::kBool);
  for (size_t i = 0; i < keys.size(); ++i) {
    out.data_ptr<bool>()[i] = philox(rng.seed, stream, keys[i], 0).w[0] < threshold;
  }
  return out;
}

Tensor uniform_int(int64_t n, const Rng& rng, Purpose purpose, uint32_t site,
                   const Tensor& indices) {
  SIGMA_CHECK(kFailure, n >= 1, "uniform_int: expected n of at least 1, got {}", n);
  const uint32_t stream = random_stream(purpose, site);
  const std::vector<uint64_t> keys = sample_keys(rng, indices);
  Tensor out = torch::empty({static_cast<int64_t>(keys.size())}, torch::kInt64);
  for (size_t i = 0; i < keys.size(); ++i) {
    out.data_ptr<int64_t>()[i] = static_cast<int64_t>(
        uniform_below(philox(rng.seed, stream, keys[i], 0), static_cast<uint64_t>(n)));
  }
  return out;
}

void fill_normal_keyed(const Tensor& out, uint64_t seed, uint32_t stream, uint64_t sample) {
  fill(out, Distribution::kNormal, seed, stream, {sample});
}

void fill_uniform_keyed(const Tensor& out, uint64_t seed, uint32_t stream, uint64_t sample) {
  fill(out, Distribution::kUniform, seed, stream, {sample});
}

std::vector<int64_t> permutation(uint64_t seed, uint64_t epoch, int64_t n) {
  SIGMA_CHECK(kFailure, n >= 0 && n < (int64_t{1} << 32),
              "permutation: expected n below 2^32, got {}", n);
  std::vector<int64_t> p(static_cast<size_t>(n));
  std::iota(p.begin(), p.end(), int64_t{0});
  const uint32_t stream = random_stream(Purpose::kShuffle, 0);
  for (int64_t i = n - 1; i > 0; --i) {
    const PhiloxWords words = philox(seed, stream, epoch, static_cast<uint32_t>(i));
    std::swap(p[static_cast<size_t>(i)], p[uniform_below(words, static_cast<uint64_t>(i) + 1)]);
  }
  return p;
}

}  // namespace sigma
