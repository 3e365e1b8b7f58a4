#include "sigma/cli/plot_style.h"

#include <algorithm>
#include <cmath>

namespace sigma {

double tick_step(double span, int count) {
  const double rough = span / count;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= rough) return factor * power;
  }
  return 10 * power;
}

std::vector<double> plot_ticks(double low, double high, bool logarithmic, int count) {
  std::vector<double> out;
  if (!logarithmic) {
    const double step = tick_step(high - low, count);
    // Multiples of the step by their number, so that no error adds up; bounded for ranges below the
    // precision of their ends. + 0 turns -0 into 0.
    double k = std::ceil(low / step);
    for (int i = 0; i <= 2 * count && k * step <= high; ++i, ++k) out.push_back(k * step + 0.0);
    return out;
  }
  const int first = static_cast<int>(std::floor(std::log10(low)));
  const int last = static_cast<int>(std::ceil(std::log10(high)));
  const auto add = [&](double v) {
    if (v >= low && v <= high) out.push_back(v);
  };
  const bool fine = std::log10(high / low) * 3 <= count + 1;
  const int stride = std::max(1, (last - first + count - 1) / count);
  for (int exponent = first; exponent <= last; exponent += fine ? 1 : stride) {
    const double power = std::pow(10, exponent);
    add(power);
    if (!fine) continue;
    add(2 * power);
    add(5 * power);
  }
  // Less than one such number apart: round ones in between.
  return out.size() >= 2 ? out : plot_ticks(low, high, false, count);
}

}  // namespace sigma
