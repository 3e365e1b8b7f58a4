// Products of an expert's weights with panels of its rows, for the mixture on the CPU. Torch-free.
//
// A panel holds up to 64 rows turned on their side, [width, lanes] with lanes = padded(rows): a column
// is a row, what is past the rows is zero. A register tile is then 6 rows of a weight, read where it
// lies, number by number, and the panel's vectors: nothing is packed, and a panel's product is already
// the operand of the next.
#pragma once

#include <cstdint>

namespace sigma::kernels {

constexpr int64_t kPanelRows = 64;

/// A matrix [rows, columns] read at p[r * row + c * column]; one of the two steps is 1.
struct Matrix {
  const float* p;
  int64_t row, column;
  Matrix at(int64_t r, int64_t c) const { return {p + r * row + c * column, row, column}; }
};

/// panel [width, padded(n)] of x[row[i]], i < n.
void gather_panel(const float* x, const int32_t* row, int64_t n, int64_t width, float* panel);

/// The same rows in order, in blocks of kPanelRows columns: [ceil(width / 64), n, 64]; past the
/// width: nothing is written, and outer() reads nothing.
void gather_blocks(const float* x, const int32_t* row, int64_t n, int64_t width, float* blocks);

/// y[row[i]] += weight[i] (null: 1) times column i of the panel, i < n in order, between two columns
/// of y [.., width].
void add_panel(const float* panel, const int32_t* row, const float* weight, int64_t n,
               int64_t width, int64_t first_column, int64_t last_column, float* y);

/// out [rows, lanes] = left [rows, depth] panel [depth, lanes] + bias [rows]; bias may be null.
void product_panel(const Matrix& left, int64_t rows, int64_t depth, const float* panel,
                   int64_t lanes, const float* bias, float* out);

/// sum [rows, width] = panel [rows, lanes] times the n rows in blocks, + sum if `add`.
void outer(const float* panel, int64_t rows, int64_t lanes, const float* blocks, int64_t n,
           int64_t width, bool add, float* sum);

/// out [columns, rows] = in [rows, columns].
void transpose(const float* in, int64_t rows, int64_t columns, float* out);

}  // namespace sigma::kernels
