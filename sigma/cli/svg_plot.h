// A line plot as inline SVG, with its legend and, folded, its numbers as a table. Equal data give
// equal bytes: coordinates have two decimals.
#pragma once

#include <string>
#include <vector>

namespace sigma {

struct Series {
  std::string name;
  std::vector<double> x;  // rising; NaN or infinite: a gap
  std::vector<double> y;  // the same
};

/// At most `most` points with the same outline: the lowest and highest of each stretch stay, and so
/// do gaps.
Series decimate(const Series& series, size_t most);

struct SvgPlot {
  std::string title;
  std::string x_label;
  std::vector<Series> series;
  bool log_x = false;  // points at or below 0 are gaps
  bool log_y = false;
  /// A <figure>; of no finite point at all: says so.
  std::string html() const;
};

/// Whether y spans so much, all above 0, that a logarithmic axis shows it better.
bool wants_log(const std::vector<Series>& series);

}  // namespace sigma
