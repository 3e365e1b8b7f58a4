#include "sigma/moe/kernels/panels.h"

#include <algorithm>

#include "sigma/base/lanes.h"
#include "sigma/base/simd.h"

namespace sigma::kernels {
namespace {

constexpr int kTile = 6;  // rows of a register tile
constexpr int64_t kDepth =
    128;  // of a product at a time: its part of a panel's vector, 8 KB, stays in L1
constexpr int64_t kStripe = 24;  // rows of a weight at a time: their part is read once a panel

// Rows i and i + kStep of each pair of groups exchange halves: one of the four rounds of a transpose.
template <int kStep>
SIGMA_INLINE void exchange(Lanes (&m)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    if (i & kStep) continue;
    const Lanes a = m[i], b = m[i + kStep];
#define SIGMA_LOW(j) ((j) & kStep ? ((j) - kStep) + kLanes : (j))
#define SIGMA_HIGH(j) ((j) & kStep ? (j) + kLanes : (j) + kStep)
#define SIGMA_ALL(f)                                                                             \
  f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9), f(10), f(11), f(12), f(13), f(14), \
      f(15)
    m[i] = __builtin_shufflevector(a, b, SIGMA_ALL(SIGMA_LOW));
    m[i + kStep] = __builtin_shufflevector(a, b, SIGMA_ALL(SIGMA_HIGH));
#undef SIGMA_ALL
#undef SIGMA_HIGH
#undef SIGMA_LOW
  }
}

SIGMA_INLINE void transpose_lanes(Lanes (&m)[kLanes]) {
  exchange<8>(m);
  exchange<4>(m);
  exchange<2>(m);
  exchange<1>(m);
}

// out[c * stride + i] = from[i][c], i < 16; from[i] null: zeros.
SIGMA_INLINE void turn_rows(const float* const* from, int64_t width, float* out, int64_t stride) {
  int64_t c = 0;
  for (; c + kLanes <= width; c += kLanes) {
    Lanes m[kLanes];
    for (int i = 0; i < kLanes; ++i) m[i] = from[i] ? load_lanes(from[i] + c) : Lanes{};
    transpose_lanes(m);
    for (int i = 0; i < kLanes; ++i) store_lanes(out + (c + i) * stride, m[i]);
  }
  for (; c < width; ++c)
    for (int i = 0; i < kLanes; ++i) out[c * stride + i] = from[i] ? from[i][c] : 0.0f;
}

// to[i * width + c] = panel[c * stride + i], i < n <= 16.
SIGMA_INLINE void turn_columns(const float* panel, int64_t stride, int64_t n, int64_t width,
                               float* to) {
  int64_t c = 0;
  for (; c + kLanes <= width; c += kLanes) {
    Lanes m[kLanes];
    for (int i = 0; i < kLanes; ++i) m[i] = load_lanes(panel + (c + i) * stride);
    transpose_lanes(m);
    for (int i = 0; i < kLanes; ++i)
      if (i < n) store_lanes(to + i * width + c, m[i]);
  }
  for (; c < width; ++c)
    for (int64_t i = 0; i < n; ++i) to[i * width + c] = panel[c * stride + i];
}

// kRows x kVectors of out = left right (+ bias, or + out), kept in registers over the depth. kTurned:
// left.row is 1; else left.column is.
enum class Start { kZero, kBias, kSum };
template <int kRows, int kVectors, Start kStart, bool kTurned>
SIGMA_INLINE void tile(const Matrix& left, int64_t depth, const float* right, int64_t right_stride,
                       const float* bias, float* out, int64_t out_stride) {
  Lanes sum[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v)
      sum[r][v] = kStart == Start::kSum    ? load_lanes(out + r * out_stride + v * kLanes)
                  : kStart == Start::kBias ? Lanes{} + bias[r]
                                           : Lanes{};
  const int64_t row = kTurned ? 1 : left.row, column = kTurned ? left.column : 1;
  for (int64_t k = 0; k < depth; ++k) {
    Lanes x[kVectors];
    for (int v = 0; v < kVectors; ++v) x[v] = load_lanes(right + k * right_stride + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const float w = left.p[r * row + k * column];
      for (int v = 0; v < kVectors; ++v) sum[r][v] += w * x[v];
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) store_lanes(out + r * out_stride + v * kLanes, sum[r][v]);
}

template <int kVectors, Start kStart, bool kTurned>
SIGMA_INLINE void tiles(const Matrix& left, int64_t rows, int64_t depth, const float* right,
                        int64_t right_stride, const float* bias, float* out, int64_t out_stride) {
  int64_t r = 0;
  for (; r + kTile <= rows; r += kTile)
    tile<kTile, kVectors, kStart, kTurned>(left.at(r, 0), depth, right, right_stride, bias + r,
                                           out + r * out_stride, out_stride);
  for (; r < rows; ++r)
    tile<1, kVectors, kStart, kTurned>(left.at(r, 0), depth, right, right_stride, bias + r,
                                       out + r * out_stride, out_stride);
}

#if defined(__x86_64__)
const bool kWide = __builtin_cpu_supports("avx512f");
#else
const bool kWide = false;
#endif

// `vectors` <= 4 columns of lanes. Four at once fill AVX-512's registers (24 of 32), one AVX2's.
template <Start kStart, bool kTurned>
SIGMA_INLINE void columns(const Matrix& left, int64_t rows, int64_t depth, const float* right,
                          int64_t right_stride, int64_t vectors, const float* bias, float* out,
                          int64_t out_stride) {
#define SIGMA_COLUMNS(n) \
  tiles<n, kStart, kTurned>(left, rows, depth, right, right_stride, bias, out, out_stride)
  if (kWide && vectors == 4) return SIGMA_COLUMNS(4);
  if (kWide && vectors == 3) return SIGMA_COLUMNS(3);
  if (kWide && vectors == 2) return SIGMA_COLUMNS(2);
#undef SIGMA_COLUMNS
  for (int64_t v = 0; v < vectors; ++v)
    tiles<1, kStart, kTurned>(left, rows, depth, right + v * kLanes, right_stride, bias,
                              out + v * kLanes, out_stride);
}

template <bool kTurned>
SIGMA_INLINE void product(const Matrix& left, int64_t rows, int64_t depth, const float* panel,
                          int64_t lanes, const float* bias, float* out) {
  const int64_t vectors = lanes / kLanes;
  for (int64_t k = 0; k < depth; k += kDepth)
    for (int64_t r = 0; r < rows; r += kStripe) {
      const Matrix part = left.at(r, k);
      const int64_t height = std::min(kStripe, rows - r), here = std::min(kDepth, depth - k);
      const float* right = panel + k * lanes;
      float* to = out + r * lanes;
      if (k > 0)
        columns<Start::kSum, kTurned>(part, height, here, right, lanes, vectors, out, to, lanes);
      else if (bias != nullptr)
        columns<Start::kBias, kTurned>(part, height, here, right, lanes, vectors, bias + r, to,
                                       lanes);
      else
        columns<Start::kZero, kTurned>(part, height, here, right, lanes, vectors, out, to, lanes);
    }
}

}  // namespace

SIGMA_MULTIVERSION void gather_panel(const float* x, const int32_t* row, int64_t n, int64_t width,
                                     float* panel) {
  const int64_t lanes = padded(n);
  for (int64_t first = 0; first < n; first += kLanes) {
    const float* from[kLanes];
    for (int64_t i = 0; i < kLanes; ++i)
      from[i] = first + i < n ? x + static_cast<int64_t>(row[first + i]) * width : nullptr;
    turn_rows(from, width, panel + first, lanes);
  }
}

void gather_blocks(const float* x, const int32_t* row, int64_t n, int64_t width, float* blocks) {
  for (int64_t i = 0; i < n; ++i) {
    const float* from = x + static_cast<int64_t>(row[i]) * width;
    for (int64_t c = 0; c < width; c += kPanelRows) {
      float* to = blocks + c * n + i * kPanelRows;
      const int64_t here = std::min(width - c, kPanelRows);
      std::copy(from + c, from + c + here, to);
    }
  }
}

SIGMA_MULTIVERSION void transpose(const float* in, int64_t rows, int64_t columns, float* out) {
  int64_t first = 0;
  for (; first + kLanes <= rows; first += kLanes) {
    const float* from[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) from[i] = in + (first + i) * columns;
    turn_rows(from, columns, out + first, rows);
  }
  for (; first < rows; ++first)
    for (int64_t c = 0; c < columns; ++c) out[c * rows + first] = in[first * columns + c];
}

SIGMA_MULTIVERSION void scatter_panel(const float* panel, int64_t n, int64_t width, float* rows) {
  const int64_t lanes = padded(n);
  for (int64_t first = 0; first < n; first += kLanes)
    turn_columns(panel + first, lanes, std::min(n - first, kLanes), width, rows + first * width);
}

SIGMA_MULTIVERSION void product_panel(const Matrix& left, int64_t rows, int64_t depth,
                                      const float* panel, int64_t lanes, const float* bias,
                                      float* out) {
  if (left.column == 1) product<false>(left, rows, depth, panel, lanes, bias, out);
  else product<true>(left, rows, depth, panel, lanes, bias, out);
}

SIGMA_MULTIVERSION void outer(const float* panel, int64_t rows, int64_t lanes, const float* blocks,
                              int64_t n, int64_t width, bool add, float* sum) {
  const Matrix left = {panel, lanes, 1};
  for (int64_t c = 0; c < width; c += kPanelRows) {
    const float* block = blocks + c * n;
    const int64_t here = std::min(width - c, kPanelRows), whole = here / kLanes;
    if (add)
      columns<Start::kSum, false>(left, rows, n, block, kPanelRows, whole, sum, sum + c, width);
    else columns<Start::kZero, false>(left, rows, n, block, kPanelRows, whole, sum, sum + c, width);
    for (int64_t j = whole * kLanes; j < here; ++j)
      for (int64_t r = 0; r < rows; ++r) {
        float total = add ? sum[r * width + c + j] : 0.0f;
        for (int64_t i = 0; i < n; ++i) total += panel[r * lanes + i] * block[i * kPanelRows + j];
        sum[r * width + c + j] = total;
      }
  }
}

}  // namespace sigma::kernels
