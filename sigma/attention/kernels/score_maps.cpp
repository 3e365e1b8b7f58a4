#include "sigma/attention/kernels/score_maps.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <utility>

#include "sigma/attention/kernels/small_gemm.h"
#include "sigma/base/simd.h"

namespace sigma::kernels {
namespace {

constexpr int64_t kPanel = 64;  // columns of a panel
constexpr int64_t kMost = 128;  // rows whose pointers a product keeps
constexpr int kWide = 2;        // vectors of a row whose sums a stencil keeps in registers
constexpr int kTaps = 6;        // taps whose sums stay in registers
constexpr float kInfinity = std::numeric_limits<float>::infinity();

SIGMA_INLINE float sum_of(Lanes x) {
  float out = 0;
  for (int i = 0; i < kLanes; ++i) out += x[i];
  return out;
}

template <int kVectors>
SIGMA_INLINE void stencil_tile(const Tap* taps, int64_t count, const float* in, float* out) {
  Lanes sum[kVectors] = {};
  for (int64_t t = 0; t < count; ++t) {
    const float* from = in + taps[t].offset;
    for (int i = 0; i < kVectors; ++i) sum[i] += taps[t].weight * load_lanes(from + i * kLanes);
  }
  for (int i = 0; i < kVectors; ++i) store_lanes(out + i * kLanes, sum[i]);
}

// kSame1: row 1 reads what row 0 reads; kSame2: row 2 what row 1 reads.
template <bool kSame1, bool kSame2>
SIGMA_INLINE void stencil_steps(const std::vector<Stencil::Step>& steps, const float* in,
                                Lanes (*sum)[kWide]) {
  const Stencil::Step* step = steps.data();
  const Stencil::Step* end = step + steps.size();
  for (; step != end; ++step) {
    for (int i = 0; i < kWide; ++i, in += kLanes) {
      const Lanes x0 = load_lanes(in + step->offset[0]);
      sum[0][i] += step->weight[0] * x0;
      const Lanes x1 = kSame1 ? x0 : load_lanes(in + step->offset[1]);
      sum[1][i] += step->weight[1] * x1;
      const Lanes x2 = kSame2 ? x1 : load_lanes(in + step->offset[2]);
      sum[2][i] += step->weight[2] * x2;
      // Weights are read again for the next vector: kept, they would push sums out of registers.
      asm volatile("" : "+r"(step));
    }
    in -= kWide * kLanes;
  }
}

SIGMA_INLINE void stencil_rows_tile(const Stencil& s, const float* in, float* out, int64_t stride) {
  Lanes sum[kStencilRows][kWide] = {};
  stencil_steps<true, true>(s.shared, in, sum);
  stencil_steps<false, true>(s.first_alone, in, sum);
  stencil_steps<true, false>(s.last_alone, in, sum);
  stencil_steps<false, false>(s.apart, in, sum);
  for (int r = 0; r < kStencilRows; ++r)
    for (int i = 0; i < kWide; ++i) store_lanes(out + r * stride + i * kLanes, sum[r][i]);
}

template <int kCount>
SIGMA_INLINE void stencil_grad_taps(const int64_t* offset, const float* in, const float* grad,
                                    int64_t width, float* sums) {
  Lanes sum[kCount] = {};
  for (int64_t p = 0; p < width; p += kLanes) {
    const Lanes g = load_lanes(grad + p);
    for (int t = 0; t < kCount; ++t) sum[t] += g * load_lanes(in + offset[t] + p);
  }
  for (int t = 0; t < kCount; ++t) add_lanes(sums + t * kLanes, sum[t]);
}

// The bodies take and give vectors: inlined, so that no call has an ABI.

SIGMA_INLINE void mix_body(const float* weight, int64_t row, int64_t column, int64_t heads,
                           float* const* x, int64_t width, float* old) {
  for (int64_t p = 0; p < width; p += kLanes) {
    for (int64_t h = 0; h < heads; ++h) store_lanes(old + h * kLanes, load_lanes(x[h] + p));
    for (int64_t i = 0; i < heads; ++i) {
      Lanes sum = {};
      for (int64_t h = 0; h < heads; ++h)
        sum += weight[i * row + h * column] * load_lanes(old + h * kLanes);
      store_lanes(x[i] + p, sum);
    }
  }
}

SIGMA_INLINE float dot_body(const float* x, const float* y, int64_t width) {
  Lanes sum = {};
  for (int64_t p = 0; p < width; p += kLanes) sum += load_lanes(x + p) * load_lanes(y + p);
  return sum_of(sum);
}

SIGMA_INLINE void scale_body(float factor, float* x, int64_t width) {
  for (int64_t p = 0; p < width; p += kLanes) store_lanes(x + p, load_lanes(x + p) * factor);
}

SIGMA_INLINE float softmax_body(const float* bias, float* x, int64_t width) {
  for (int64_t p = 0; p < width; p += kLanes)
    store_lanes(x + p, load_lanes(x + p) + load_lanes(bias + p));
  const float top = max_of(x, width);
  if (top == -kInfinity) {
    std::fill(x, x + width, 0.0f);
    return top;
  }
  const float sum = exp_row(x, width, 1, top);
  scale_body(1 / sum, x, width);
  return top + std::log(sum);
}

SIGMA_INLINE void softmax_grad_body(const float* p, float* grad, int64_t width) {
  const float delta = dot_body(p, grad, width);
  for (int64_t c = 0; c < width; c += kLanes)
    store_lanes(grad + c, load_lanes(p + c) * (load_lanes(grad + c) - delta));
}

}  // namespace

void Map::take(const Map& from) {
  hold(from.rows_);
  for (int64_t i = rows_.first; i < rows_.last; ++i)
    std::copy_n(from.row(i), columns_ + margin_, row(i));
}

void Map::clear(int64_t i, int64_t column) {
  std::fill(row(i) + column, row(i) + columns_ + margin_, 0.0f);
}

Stencil stencil_of(const std::vector<Tap>& taps, int64_t stride) {
  // By the rows that read a place, a bit each.
  std::map<int64_t, Stencil::Step> places;
  std::map<int64_t, unsigned> readers;
  for (int r = 0; r < kStencilRows; ++r) {
    for (const Tap& tap : taps) {
      places[tap.offset + r * stride].weight[r] += tap.weight;
      readers[tap.offset + r * stride] |= 1u << r;
    }
  }
  std::vector<int64_t> by_readers[1 << kStencilRows];
  for (const auto& [offset, rows] : readers) by_readers[rows].push_back(offset);
  Stencil out;
  // One step of places that no two rows share; a row without one adds 0.
  const auto step = [&](std::initializer_list<std::pair<unsigned, int64_t>> parts) {
    Stencil::Step s{};
    for (int r = 0; r < kStencilRows; ++r) {
      for (const auto& [rows, offset] : parts) {
        if (!(rows >> r & 1)) continue;
        s.offset[r] = offset;
        s.weight[r] = places[offset].weight[r];
      }
    }
    return s;
  };
  const auto take = [&](unsigned rows) {
    const int64_t offset = by_readers[rows].back();
    by_readers[rows].pop_back();
    return std::pair(rows, offset);
  };
  const auto any = [&](unsigned rows) { return !by_readers[rows].empty(); };
  while (any(7)) out.shared.push_back(step({take(7)}));
  while (any(1) && any(6)) out.first_alone.push_back(step({take(1), take(6)}));
  while (any(3) && any(4)) out.last_alone.push_back(step({take(3), take(4)}));
  while (any(1) && any(2) && any(4)) out.apart.push_back(step({take(1), take(2), take(4)}));
  for (unsigned rows = 1; rows < 7; ++rows)
    while (any(rows)) out.apart.push_back(step({take(rows)}));
  return out;
}

SIGMA_MULTIVERSION void stencil(const std::vector<Tap>& taps, const float* in, float* out,
                                int64_t width) {
  const auto count = static_cast<int64_t>(taps.size());
  int64_t p = 0;
  for (; p + 4 * kLanes <= width; p += 4 * kLanes)
    stencil_tile<4>(taps.data(), count, in + p, out + p);
  for (; p < width; p += kLanes) stencil_tile<1>(taps.data(), count, in + p, out + p);
}

SIGMA_MULTIVERSION void stencil_rows(const Stencil& s, const float* in, float* out, int64_t stride,
                                     int64_t width) {
  for (int64_t p = 0; p < width; p += kWide * kLanes) stencil_rows_tile(s, in + p, out + p, stride);
}

SIGMA_MULTIVERSION void stencil_grad(const KeyTaps& taps, const float* in, const float* grad,
                                     int64_t width, float* sums) {
  const int64_t* offset = taps.in_offset.data();
  const int64_t* end = offset + taps.in_offset.size();
  grad += taps.key_step;
  for (; offset + kTaps <= end; offset += kTaps, sums += kTaps * kLanes)
    stencil_grad_taps<kTaps>(offset, in, grad, width, sums);
  for (; offset + 3 <= end; offset += 3, sums += 3 * kLanes)
    stencil_grad_taps<3>(offset, in, grad, width, sums);
  for (; offset < end; ++offset, sums += kLanes)
    stencil_grad_taps<1>(offset, in, grad, width, sums);
}

SIGMA_MULTIVERSION void product_with_panels(int64_t rows, const float* A, int64_t depth,
                                            const float* B, int64_t panels, float* C,
                                            int64_t stride) {
  const float* left[kMost];
  for (int64_t first = 0; first < rows; first += kMost) {
    const int64_t count = std::min(kMost, rows - first);
    for (int64_t r = 0; r < count; ++r) left[r] = A + (first + r) * depth;
    for (int64_t p = 0; p < panels; ++p)
      gemm_nn(count, left, depth, B + p * depth * kPanel, kPanel, C + first * stride + p * kPanel,
              stride);
  }
}

SIGMA_MULTIVERSION void product(int64_t rows, const float* A, int64_t stride, const float* B,
                                int64_t panels, int64_t width, float* C) {
  const float* left[kMost];
  float* target[kMost];
  std::fill(C, C + rows * width, 0.0f);
  for (int64_t first = 0; first < rows; first += kMost) {
    const int64_t count = std::min(kMost, rows - first);
    for (int64_t r = 0; r < count; ++r) target[r] = C + (first + r) * width;
    for (int64_t p = 0; p < panels; ++p) {
      for (int64_t r = 0; r < count; ++r) left[r] = A + (first + r) * stride + p * kPanel;
      gemm_nn_add(count, left, kPanel, B + p * kPanel * width, width, target);
    }
  }
}

SIGMA_MULTIVERSION void add_transposed_product(int64_t rows, const float* A, int64_t stride,
                                               const float* B, int64_t panels, int64_t width,
                                               float* C) {
  const float* right[kMost];
  for (int64_t first = 0; first < rows; first += kMost) {
    const int64_t count = std::min(kMost, rows - first);
    for (int64_t r = 0; r < count; ++r) right[r] = B + (first + r) * width;
    for (int64_t p = 0; p < panels; ++p)
      gemm_tn_add(kPanel, count, A + first * stride + p * kPanel, stride, right, width,
                  C + p * kPanel * width);
  }
}

void pack_panels(const float* x, int64_t rows, int64_t depth, float scale, float* panels) {
  for (int64_t first = 0; first < rows; first += kPanel) {
    float* panel = panels + first * depth;
    for (int64_t d = 0; d < depth; ++d) {
      for (int64_t r = 0; r < kPanel; ++r)
        panel[d * kPanel + r] = first + r < rows ? scale * x[(first + r) * depth + d] : 0;
    }
  }
}

SIGMA_MULTIVERSION void mix(const float* weight, int64_t row, int64_t column, int64_t heads,
                            float* const* x, int64_t width) {
  std::vector<float> old(static_cast<size_t>(heads * kLanes));
  mix_body(weight, row, column, heads, x, width, old.data());
}

SIGMA_MULTIVERSION float dot(const float* x, const float* y, int64_t width) {
  return dot_body(x, y, width);
}

SIGMA_MULTIVERSION void scale_by(float factor, float* x, int64_t width) {
  scale_body(factor, x, width);
}

SIGMA_MULTIVERSION float softmax(const float* bias, float* x, int64_t width) {
  return softmax_body(bias, x, width);
}

SIGMA_MULTIVERSION void softmax_grad(const float* p, float* grad, int64_t width) {
  softmax_grad_body(p, grad, width);
}

}  // namespace sigma::kernels
