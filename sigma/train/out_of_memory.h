// What the user is told where training runs out of memory.
#pragma once

#include <exception>

#include "sigma/base/error.h"
#include "sigma/train/run.h"

namespace sigma {

/// kDevice with the request, the peak, and the setting that helps, also logged; retrying is left to
/// the user. `group_size`: what a micro-batch must be a multiple of.
Error out_of_memory(const std::exception& error, const TrainConfig& config, int64_t group_size,
                    Run& run);

}  // namespace sigma
