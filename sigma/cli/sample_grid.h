// The grid of samples that checkpoints and comparisons show: the same noise and labels for every
// run, so that two grids differ only by what was learnt.
#pragma once

#include <filesystem>

#include "sigma/cli/sampling.h"

namespace sigma {

constexpr int64_t kGridSeed = 0;

/// Four rows of images by the run's own sampler, a column a class, at most ten; ten columns
/// without labels.
Sheet sample_grid(const LoadedGenerator& generator);

/// Writes RUN/samples/step-NNNNNNN.png, and the record beside it, for a checkpoint folder of a
/// generator run; returns the file. Of other runs: nothing, an empty path. Errors: kCheckpoint,
/// kIo, kNonFinite (of the samples), out of memory.
std::filesystem::path write_sample_grid(const std::filesystem::path& checkpoint);

}  // namespace sigma
