#include <algorithm>
#include <cmath>
#include <limits>

#include "sigma/base/error.h"
#include "sigma/cli/plot_style.h"
#include "sigma/cli/sweep.h"
#include "sigma/io/image_draw.h"

namespace sigma {
namespace {

constexpr int64_t kHeight = 300, kWidth = 400;  // and the names to the right
constexpr int64_t kLeft = 70, kTop = 40, kBottom = 50, kSpace = 12;
constexpr int64_t kDot = 5;
constexpr int kTicks = 4;
constexpr Color kInk{60, 60, 60};
constexpr Color kRule{220, 220, 220};

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void take(double value) {
    if (!std::isfinite(value)) return;
    low = std::min(low, value);
    high = std::max(high, value);
  }
};

}  // namespace

Image draw_curves(const std::string& title, const std::string& x_title,
                  const std::vector<int64_t>& x, const std::vector<Curve>& curves) {
  SIGMA_CHECK(kUsage, !x.empty() && !curves.empty(), "curves: expected at least one point");
  Range y_range, x_range;
  for (const Curve& curve : curves) {
    for (const auto* values : {&curve.middle, &curve.low, &curve.high})
      for (const double value : *values) y_range.take(value);
  }
  for (const int64_t at : x) x_range.take(std::log2(static_cast<double>(at)));
  if (y_range.low > y_range.high) y_range = {0, 1};
  const double span = std::max(y_range.high - y_range.low, 1e-6 * std::abs(y_range.high) + 1e-12);
  const double step = tick_step(span, kTicks);
  const double low = std::floor(y_range.low / step) * step;
  const double high = std::max(std::ceil(y_range.high / step) * step, low + step);

  int64_t names = 0;
  for (const Curve& curve : curves) names = std::max(names, text_width(curve.name));
  Image out = white_image(kHeight, kWidth + kSpace + names + kSpace, 3);
  const int64_t right = kWidth, bottom = kHeight - kBottom;
  const auto x_at = [&](int64_t value) {
    if (x_range.high <= x_range.low) return (kLeft + right) / 2;
    const double share =
        (std::log2(static_cast<double>(value)) - x_range.low) / (x_range.high - x_range.low);
    return kLeft + kDot +
           static_cast<int64_t>(std::lround(share * static_cast<double>(right - kLeft - 2 * kDot)));
  };
  const auto y_at = [&](double value) {
    return bottom - static_cast<int64_t>(std::lround((value - low) / (high - low) *
                                                     static_cast<double>(bottom - kTop)));
  };
  draw_text(out, title, kLeft, 12, 2);
  for (int64_t i = 0; low + static_cast<double>(i) * step <= high + step / 2; ++i) {
    const double value = low + static_cast<double>(i) * step;
    const std::string text = fmt::format("{:.4g}", std::abs(value) < step / 2 ? 0 : value);
    draw_line(out, kLeft, y_at(value), right, y_at(value), kRule);
    draw_text(out, text, kLeft - 8 - text_width(text), y_at(value) - text_height() / 2, 2, kInk);
  }
  for (const int64_t at : x) {
    const std::string text = fmt::format("{}", at);
    draw_line(out, x_at(at), bottom, x_at(at), bottom + 4, kInk);
    draw_text(out, text, x_at(at) - text_width(text) / 2, bottom + 8, 2, kInk);
  }
  draw_line(out, kLeft, bottom, right, bottom, kInk);
  draw_text(out, x_title, (kLeft + right - text_width(x_title)) / 2, bottom + 28, 2, kInk);
  for (size_t c = 0; c < curves.size(); ++c) {
    const Curve& curve = curves[c];
    const Color color = kPlotColors[c % kPlotColors.size()];
    for (size_t i = 0; i < x.size(); ++i) {
      if (!std::isfinite(curve.middle[i])) continue;
      draw_line(out, x_at(x[i]), y_at(curve.low[i]), x_at(x[i]), y_at(curve.high[i]), color);
      draw_line(out, x_at(x[i]), y_at(curve.middle[i]), x_at(x[i]), y_at(curve.middle[i]), color,
                kDot);
      if (i > 0 && std::isfinite(curve.middle[i - 1]))
        draw_line(out, x_at(x[i - 1]), y_at(curve.middle[i - 1]), x_at(x[i]), y_at(curve.middle[i]),
                  color, 2);
    }
    draw_text(out, curve.name, right + kSpace, kTop + static_cast<int64_t>(c) * (text_height() + 4),
              2, color);
  }
  return out;
}

}  // namespace sigma
