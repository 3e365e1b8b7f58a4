// Strips of attention score maps on the CPU, float32, and what multi-token attention does to them.
// Torch-free.
//
// A Map holds some rows of a map of one head, with zeros on both sides of every row and in rows
// beyond the map: what a convolution reads outside is 0 without a test. All maps of a task have the
// same stride, so that a tap is one offset in memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace sigma::kernels {

struct Rows {
  int64_t first = 0, last = 0;
};

class Map {
 public:
  Map(int64_t most_rows, int64_t columns, int64_t margin)
      : columns_(columns),
        margin_(margin),
        store_(static_cast<size_t>(most_rows * (columns + 2 * margin) + kAlign)) {}
  int64_t stride() const { return columns_ + 2 * margin_; }
  int64_t columns() const { return columns_; }
  /// Which rows it holds from now on.
  void hold(Rows rows) { rows_ = rows; }
  Rows rows() const { return rows_; }
  float* row(int64_t i) { return begin() + (i - rows_.first) * stride() + margin_; }
  const float* row(int64_t i) const { return const_cast<Map*>(this)->row(i); }
  /// The rows of a map of the same size.
  void take(const Map& from);
  /// Zeros from `column` to the end of row i, margins included.
  void clear(int64_t i, int64_t column);

 private:
  static constexpr int64_t kAlign = 16;  // floats of a cache line
  float* begin() {
    const auto address = reinterpret_cast<uintptr_t>(store_.data()) / sizeof(float);
    return store_.data() + (kAlign - static_cast<int64_t>(address % kAlign)) % kAlign;
  }
  int64_t columns_, margin_;
  Rows rows_;
  std::vector<float> store_;
};

/// One tap of a kernel: the element `offset` away counts `weight` times.
struct Tap {
  int64_t offset;
  float weight;
};

/// A kernel for kStencilRows rows of a map at once: what several rows read is loaded once.
constexpr int kStencilRows = 3;
struct Stencil {
  struct Step {                                // one tap a row
    std::array<int64_t, kStencilRows> offset;  // from the first row
    std::array<float, kStencilRows> weight;
  };
  // Steps whose rows read one place, two (the first row by itself, or the last), or three.
  std::vector<Step> shared, first_alone, last_alone, apart;
};
Stencil stencil_of(const std::vector<Tap>& taps, int64_t stride);

/// out[p] = sum of weight * in[p + offset] over the taps, p < width, a multiple of 16.
void stencil(const std::vector<Tap>& taps, const float* in, float* out, int64_t width);
/// The same for kStencilRows rows, `stride` apart; may write up to 16 columns more.
void stencil_rows(const Stencil& stencil, const float* in, float* out, int64_t stride,
                  int64_t width);
/// The taps of one key step: what they read of `grad` is loaded once.
struct KeyTaps {
  int64_t key_step;
  std::vector<int64_t> in_offset;  // of each tap, without the key step
  std::vector<int64_t> place;      // of each tap in a kernel
};
/// sums[t] += sum_p grad[p + key_step] in[p + in_offset[t]], p < width; 16 partial sums a tap.
void stencil_grad(const KeyTaps& taps, const float* in, const float* grad, int64_t width,
                  float* sums);

/// C[r] = A[r] B for r < rows: A [., depth], B panels [panels][depth][64], C rows of `stride`.
void product_with_panels(int64_t rows, const float* A, int64_t depth, const float* B,
                         int64_t panels, float* C, int64_t stride);
/// C[r] = A[r] B: A rows of `stride`, 64 * panels long, B [64 panels, width], C [rows, width].
void product(int64_t rows, const float* A, int64_t stride, const float* B, int64_t panels,
             int64_t width, float* C);
/// C[j] += sum_r A[r][j] B[r]: C [64 panels, width].
void add_transposed_product(int64_t rows, const float* A, int64_t stride, const float* B,
                            int64_t panels, int64_t width, float* C);
/// scale * x [rows, depth] as panels [depth][64], zeros after its end.
void pack_panels(const float* x, int64_t rows, int64_t depth, float scale, float* panels);

/// x_i = sum_h weight[i * row + h * column] x_h in place, for `heads` rows of `width`.
void mix(const float* weight, int64_t row, int64_t column, int64_t heads, float* const* x,
         int64_t width);
float dot(const float* x, const float* y, int64_t width);
void scale_by(float factor, float* x, int64_t width);
/// x = softmax(x + bias), bias 0 or -inf; a row without a finite score becomes 0. Returns
/// the logarithm of the sum, or -inf.
float softmax(const float* bias, float* x, int64_t width);
/// grad = p (grad - sum(p grad)).
void softmax_grad(const float* p, float* grad, int64_t width);

}  // namespace sigma::kernels
