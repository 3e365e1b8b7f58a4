// `sigma sample --seeds N`: one generator under several steps, guidance scales and seeds. A picture
// of grids (a row a guidance, a column a number of steps; in each grid a row an image, a column a
// seed), and the run's metrics against the number of steps, with their spread over the seeds.
#pragma once

#include <string>
#include <vector>

#include "sigma/cli/cli.h"
#include "sigma/io/images.h"

namespace sigma {

/// Errors: as run_sample().
CommandResult run_sweep(const SampleCommand& command, const GlobalOptions& global);

struct Curve {
  std::string name;
  std::vector<double> middle, low, high;  // at each x; NaN: a gap
};
/// Curves over x > 0 (a logarithmic axis) in one frame, low to high as bars.
Image draw_curves(const std::string& title, const std::string& x_title,
                  const std::vector<int64_t>& x, const std::vector<Curve>& curves);

}  // namespace sigma
