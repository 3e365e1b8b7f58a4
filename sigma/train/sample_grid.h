// The grid of samples that checkpoints and comparisons show: the same noise and labels for every
// run, so that two grids differ only by what was learnt.
#pragma once

#include <torch/types.h>

#include "sigma/io/images.h"
#include "sigma/train/generator_model.h"

namespace sigma {

constexpr uint64_t kGridSeed = 0;
constexpr int64_t kGridRows = 4;

/// Images 0, 1, .. of kGridSeed by the configuration's own sampler, image i with label i mod
/// classes: kGridRows rows with a column a class, at most ten; ten columns without labels.
Image sample_grid(GeneratorModel& model, torch::ScalarType dtype);

}  // namespace sigma
