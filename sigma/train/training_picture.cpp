#include "sigma/train/training_picture.h"

#include "sigma/base/error.h"
#include "sigma/base/memory.h"

namespace sigma {

void add_picture(const PictureMaker& make, const std::filesystem::path& checkpoint, int64_t step,
                 Run& run, Progress& progress) {
  if (!make) return;
  try {
    run.log_picture(make(checkpoint), step);
  } catch (const std::exception& error) {
    // A disk that takes no picture will take no checkpoint.
    const auto* known = dynamic_cast<const Error*>(&error);
    if (known && known->kind() == ErrorKind::kIo) throw;
    progress.end_line();
    run.warn(fmt::format(
        "step {}: no picture: {}", step,
        is_out_of_memory(error) ? "out of memory: " + allocation_request(error) : error.what()));
  }
}

}  // namespace sigma
