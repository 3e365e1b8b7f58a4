#include "sigma/cli/svg_plot.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>

#include "sigma/base/error.h"
#include "sigma/cli/cli.h"
#include "sigma/cli/html.h"
#include "sigma/cli/plot_style.h"

namespace sigma {
namespace {

constexpr double kWidth = 380, kHeight = 230;
constexpr double kLeft = 60, kRight = 10, kTop = 10, kBottom = 40;
constexpr size_t kMostPoints = 2000;
constexpr size_t kMarkedPoints = 40;  // up to so many, each is marked

// Dashes tell the lines apart without colours.
constexpr std::array<const char*, kPlotColors.size()> kDashes = {"none", "6 2",  "2 2", "8 2 2 2",
                                                                 "4 4",  "10 3", "1 3"};

struct Look {
  std::string colour;
  std::string dash;
};
Look look_of(size_t line) {
  const size_t k = line % kPlotColors.size();
  const Color& color = kPlotColors[k];
  return {.colour = fmt::format("#{:02X}{:02X}{:02X}", color.r, color.g, color.b),
          .dash = kDashes[k]};
}

struct Axis {
  double low = 0, high = 1;
  bool log = false;
  double from = 0, to = 1;  // in the picture
  bool shows(double v) const { return std::isfinite(v) && (!log || v > 0); }
  double at(double v) const {
    const double share = log ? std::log(v / low) / std::log(high / low) : (v - low) / (high - low);
    return from + share * (to - from);
  }
};

// The range of what both axes show; widened where it is a point.
Axis make_axis(const std::vector<Series>& series, bool of_x, bool log_x, bool log_y) {
  const Axis x_rule{.log = log_x}, y_rule{.log = log_y};
  double low = std::numeric_limits<double>::infinity();
  double high = -low;
  for (const Series& s : series) {
    for (size_t i = 0; i < s.x.size(); ++i) {
      if (!x_rule.shows(s.x[i]) || !y_rule.shows(s.y[i])) continue;
      low = std::min(low, of_x ? s.x[i] : s.y[i]);
      high = std::max(high, of_x ? s.x[i] : s.y[i]);
    }
  }
  const bool log = of_x ? log_x : log_y;
  if (log) {
    const double margin = low == high ? 2 : of_x ? 1 : std::pow(high / low, 0.04);
    low /= margin;
    high *= margin;
  } else {
    const double size = std::max(std::abs(low), std::abs(high));
    double margin = of_x ? 0 : (high - low) * 0.04;
    if (high - low <= 1e-9 * size) margin = size == 0 ? 1 : size * 0.1;
    low -= margin;
    high += margin;
    if (of_x && low > 0 && low < high / 4) low = 0;  // a course from its start
  }
  Axis axis{.low = low, .high = high, .log = log};
  axis.from = of_x ? kLeft : kHeight - kBottom;
  axis.to = of_x ? kWidth - kRight : kTop;
  return axis;
}

std::string tick_text(double v) {
  const double size = std::abs(v);
  constexpr double kKilo = 1e3, kMega = 1e6, kGiga = 1e9, kTera = 1e12;
  if (size >= kKilo * kTera || (size < 1e-3 && size > 0)) return fmt::format("{:.3g}", v);
  if (size >= kTera) return fmt::format("{:.4g}T", v / kTera);
  if (size >= kGiga) return fmt::format("{:.4g}G", v / kGiga);
  if (size >= kMega) return fmt::format("{:.4g}M", v / kMega);
  if (size >= kKilo) return fmt::format("{:.4g}k", v / kKilo);
  return fmt::format("{:.4g}", v);
}

std::string axis_marks(const Axis& x, const Axis& y, const std::string& x_label) {
  std::string out;
  for (const double v : plot_ticks(y.low, y.high, y.log, 6)) {
    const double at = y.at(v);
    out += fmt::format(
        "<path d=\"M{:.2f} {:.2f}H{:.2f}\" stroke=\"#e4e8ec\"/><text x=\"{:.2f}\" y=\"{:.2f}\" "
        "text-anchor=\"end\">{}</text>\n",
        kLeft, at, kWidth - kRight, kLeft - 6, at + 4, tick_text(v));
  }
  for (const double v : plot_ticks(x.low, x.high, x.log, 6)) {
    const double at = x.at(v);
    out += fmt::format(
        "<path d=\"M{:.2f} {:.2f}v4\" stroke=\"#8c959f\"/><text x=\"{:.2f}\" y=\"{:.2f}\" "
        "text-anchor=\"middle\">{}</text>\n",
        at, kHeight - kBottom, at, kHeight - kBottom + 16, tick_text(v));
  }
  out += fmt::format("<path d=\"M{:.2f} {:.2f}H{:.2f}\" stroke=\"#8c959f\"/>\n", kLeft,
                     kHeight - kBottom, kWidth - kRight);
  return out + fmt::format("<text x=\"{:.2f}\" y=\"{:.2f}\" text-anchor=\"middle\">{}</text>\n",
                           (kLeft + kWidth - kRight) / 2, kHeight - 6, escape_html(x_label));
}

std::string line_of(const Series& s, const Axis& x, const Axis& y, const Look& look) {
  const auto shown = [&](size_t i) { return i < s.x.size() && x.shows(s.x[i]) && y.shows(s.y[i]); };
  std::string path, marks;
  const bool mark_all = s.x.size() <= kMarkedPoints;
  for (size_t i = 0; i < s.x.size(); ++i) {
    if (!shown(i)) continue;
    const bool after_gap = i == 0 || !shown(i - 1);
    const std::string place = fmt::format("{:.2f} {:.2f}", x.at(s.x[i]), y.at(s.y[i]));
    path += (after_gap ? "M" : "L") + place;
    if (mark_all || (after_gap && !shown(i + 1))) {
      marks += fmt::format("<circle cx=\"{:.2f}\" cy=\"{:.2f}\" r=\"2\" fill=\"{}\"/>\n",
                           x.at(s.x[i]), y.at(s.y[i]), look.colour);
    }
  }
  return fmt::format(
      "<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.6\" stroke-linejoin=\"round\" "
      "stroke-dasharray=\"{}\"/>\n{}",
      path, look.colour, look.dash, marks);
}

std::string table_of(const std::vector<Series>& series, const std::string& x_label) {
  std::vector<std::vector<std::string>> rows = {{x_label}};
  std::map<double, std::vector<std::string>> by_x;
  for (size_t k = 0; k < series.size(); ++k) {
    rows[0].push_back(series[k].name);
    for (size_t i = 0; i < series[k].x.size(); ++i) {
      if (!std::isfinite(series[k].x[i])) continue;
      auto& row = by_x.try_emplace(series[k].x[i], series.size(), "").first->second;
      row[k] = number_text(series[k].y[i], 6);
    }
  }
  for (auto& [x, values] : by_x) {
    rows.push_back({fmt::format("{:.10g}", x)});
    rows.back().insert(rows.back().end(), values.begin(), values.end());
  }
  return html_details("Numbers", html_table(rows));
}

std::string legend_of(const std::vector<Series>& series) {
  if (series.size() < 2) return "";
  std::string out = "<div class=\"legend\">";
  for (size_t k = 0; k < series.size(); ++k) {
    const Look look = look_of(k);
    out += fmt::format(
        "<span><svg viewBox=\"0 0 26 8\" aria-hidden=\"true\"><path d=\"M0 4H26\" stroke=\"{}\" "
        "stroke-width=\"2\" stroke-dasharray=\"{}\"/></svg>{}</span>",
        look.colour, look.dash, escape_html(series[k].name));
  }
  return out + "</div>\n";
}

}  // namespace

Series decimate(const Series& series, size_t most) {
  const size_t size = series.x.size();
  if (size <= most) return series;
  const size_t stretches = std::max<size_t>(most / 3, 1);
  Series out{.name = series.name, .x = {}, .y = {}};
  for (size_t k = 0; k < stretches; ++k) {
    const size_t begin = k * size / stretches, end = (k + 1) * size / stretches;
    size_t lowest = end, highest = end, gap = end;
    for (size_t i = begin; i < end; ++i) {
      if (!std::isfinite(series.y[i])) {
        gap = std::min(gap, i);
        continue;
      }
      if (lowest == end || series.y[i] < series.y[lowest]) lowest = i;
      if (highest == end || series.y[i] > series.y[highest]) highest = i;
    }
    std::array<size_t, 3> kept = {lowest, highest, gap};
    std::sort(kept.begin(), kept.end());
    for (size_t j = 0; j < kept.size(); ++j) {
      if (kept[j] == end || (j > 0 && kept[j] == kept[j - 1])) continue;
      out.x.push_back(series.x[kept[j]]);
      out.y.push_back(series.y[kept[j]]);
    }
  }
  return out;
}

bool wants_log(const std::vector<Series>& series) {
  constexpr double kSpan = 30;
  double low = std::numeric_limits<double>::infinity(), high = 0;
  for (const Series& s : series) {
    for (const double v : s.y) {
      if (!std::isfinite(v)) continue;
      low = std::min(low, v);
      high = std::max(high, v);
    }
  }
  return low > 0 && high / low >= kSpan && std::isfinite(high / low);
}

std::string SvgPlot::html() const {
  std::vector<Series> drawn;
  for (const Series& s : series) drawn.push_back(decimate(s, kMostPoints));
  const Axis x = make_axis(drawn, true, log_x, log_y);
  const Axis y = make_axis(drawn, false, log_x, log_y);
  std::string out = fmt::format("<figure><figcaption>{}</figcaption>\n", escape_html(title));
  if (!std::isfinite(x.high) || !std::isfinite(y.high))
    return out + "<p class=\"note\">No finite value.</p></figure>\n";
  out += legend_of(drawn);
  out += fmt::format(
      "<svg viewBox=\"0 0 {:.0f} {:.0f}\" role=\"img\" aria-label=\"{}\" font-size=\"11\" "
      "font-family=\"inherit\" fill=\"#59636e\">\n",
      kWidth, kHeight, escape_html(title));
  out += axis_marks(x, y, x_label);
  for (size_t k = 0; k < drawn.size(); ++k) out += line_of(drawn[k], x, y, look_of(k));
  return out + "</svg>\n" + table_of(drawn, x_label) + "</figure>\n";
}

}  // namespace sigma
