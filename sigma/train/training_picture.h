// The pictures that training makes of its checkpoints.
#pragma once

#include <filesystem>

#include "sigma/base/progress.h"
#include "sigma/train/run.h"
#include "sigma/train/trainer.h"

namespace sigma {

/// The picture of a checkpoint, to the log and to events/. It only illustrates: one that cannot be
/// made (samples not finite, out of memory) is a warning. Errors: kIo.
void add_picture(const PictureMaker& make, const std::filesystem::path& checkpoint, int64_t step,
                 Run& run, Progress& progress);

}  // namespace sigma
