// What plots have in common, whether lines of an SVG or pixels of a PNG: round ticks, and colours.
#pragma once

#include <array>
#include <vector>

#include "sigma/io/image_draw.h"

namespace sigma {

/// Okabe and Ito, "Color universal design" (2008): told apart by colour-blind eyes.
inline constexpr std::array<Color, 7> kPlotColors = {{{0, 114, 178},
                                                      {213, 94, 0},
                                                      {0, 158, 115},
                                                      {204, 121, 167},
                                                      {230, 159, 0},
                                                      {86, 180, 233},
                                                      {0, 0, 0}}};

/// 1, 2 or 5 times a power of ten, of which at most `count` fit in `span` > 0.
double tick_step(double span, int count);

/// Round numbers in [low, high]: tick_step() apart; `logarithmic`: 1, 2 and 5 times powers of ten,
/// or powers only. About `count`.
std::vector<double> plot_ticks(double low, double high, bool logarithmic, int count);

}  // namespace sigma
