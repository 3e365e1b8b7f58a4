#include "sigma/moe/kernels/panels.h"

#include <algorithm>

#include "sigma/base/lanes.h"
#include "sigma/base/simd.h"

namespace sigma::kernels {
namespace {

constexpr int kTile = 6;  // rows of a register tile
// Of a product at a time: a vector's part of a panel, 8 KB, stays in L1.
constexpr int64_t kDepth = 128;
constexpr int64_t kStripe = 24;  // rows of a weight at a time: their part is read once a panel

// A square of kSide x kSide numbers is turned in registers: as many as AVX2 has.
constexpr int kSide = 8;
typedef float Side __attribute__((vector_size(kSide * sizeof(float))));
typedef Side SideInMemory __attribute__((aligned(4)));

SIGMA_INLINE Side load_side(const float* p) { return *reinterpret_cast<const SideInMemory*>(p); }
SIGMA_INLINE void store_side(float* p, Side x) { *reinterpret_cast<SideInMemory*>(p) = x; }

// Rows i and i + kStep of each pair of groups exchange halves: a round of a transpose.
template <int kStep>
SIGMA_INLINE void exchange(Side (&m)[kSide]) {
  for (int i = 0; i < kSide; ++i) {
    if (i & kStep) continue;
    const Side a = m[i], b = m[i + kStep];
#define SIGMA_LOW(j) ((j) & kStep ? ((j) - kStep) + kSide : (j))
#define SIGMA_HIGH(j) ((j) & kStep ? (j) + kSide : (j) + kStep)
#define SIGMA_ALL(f) f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7)
    m[i] = __builtin_shufflevector(a, b, SIGMA_ALL(SIGMA_LOW));
    m[i + kStep] = __builtin_shufflevector(a, b, SIGMA_ALL(SIGMA_HIGH));
#undef SIGMA_ALL
#undef SIGMA_HIGH
#undef SIGMA_LOW
  }
}

SIGMA_INLINE void transpose_square(Side (&m)[kSide]) {
  exchange<4>(m);
  exchange<2>(m);
  exchange<1>(m);
}

// out[c * stride + i] = from[i][c], i < kSide; from[i] null: zeros.
SIGMA_INLINE void turn_rows(const float* const* from, int64_t width, float* out, int64_t stride) {
  int64_t c = 0;
  for (; c + kSide <= width; c += kSide) {
    Side m[kSide];
    for (int i = 0; i < kSide; ++i) m[i] = from[i] ? load_side(from[i] + c) : Side{};
    transpose_square(m);
    for (int i = 0; i < kSide; ++i) store_side(out + (c + i) * stride, m[i]);
  }
  for (; c < width; ++c)
    for (int i = 0; i < kSide; ++i) out[c * stride + i] = from[i] ? from[i][c] : 0.0f;
}

// to[i][c] += weight[i] (null: 1) panel[c * stride + i], i < n <= kSide, first <= c < last.
SIGMA_INLINE void add_columns(const float* panel, int64_t stride, int64_t n, int64_t first,
                              int64_t last, const float* weight, float* const* to) {
  float w[kSide];
  for (int64_t i = 0; i < kSide; ++i) w[i] = weight != nullptr && i < n ? weight[i] : 1.0f;
  int64_t c = first;
  for (; c + kSide <= last; c += kSide) {
    Side m[kSide];
    for (int i = 0; i < kSide; ++i) m[i] = load_side(panel + (c + i) * stride);
    transpose_square(m);
    for (int i = 0; i < kSide; ++i)
      if (i < n) store_side(to[i] + c, load_side(to[i] + c) + w[i] * m[i]);
  }
  for (; c < last; ++c)
    for (int64_t i = 0; i < n; ++i) to[i][c] += w[i] * panel[c * stride + i];
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
  for (int64_t first = 0; first < lanes; first += kSide) {
    const float* from[kSide];
    for (int64_t i = 0; i < kSide; ++i)
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
  for (; first + kSide <= rows; first += kSide) {
    const float* from[kSide];
    for (int64_t i = 0; i < kSide; ++i) from[i] = in + (first + i) * columns;
    turn_rows(from, columns, out + first, rows);
  }
  for (; first < rows; ++first)
    for (int64_t c = 0; c < columns; ++c) out[c * rows + first] = in[first * columns + c];
}

SIGMA_MULTIVERSION void add_panel(const float* panel, const int32_t* row, const float* weight,
                                  int64_t n, int64_t width, int64_t first_column,
                                  int64_t last_column, float* y) {
  const int64_t lanes = padded(n);
  for (int64_t first = 0; first < n; first += kSide) {
    const int64_t here = std::min<int64_t>(n - first, kSide);
    float* to[kSide];
    for (int64_t i = 0; i < here; ++i) to[i] = y + static_cast<int64_t>(row[first + i]) * width;
    add_columns(panel + first, lanes, here, first_column, last_column,
                weight == nullptr ? nullptr : weight + first, to);
  }
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
