#include "sigma/train/out_of_memory.h"

#include "sigma/base/memory.h"

namespace sigma {
namespace {

constexpr int64_t kMebi = int64_t{1} << 20;

}  // namespace

Error out_of_memory(const std::exception& error, const TrainConfig& config, int64_t group_size,
                    Run& run) {
  const bool saved = !run.checkpoints().steps().empty();
  const int64_t micro = config.micro();
  const int64_t half = micro / 2;
  std::string hint = "a smaller model or train.batch is needed";
  if (micro % 2 == 0 && half % group_size == 0) {
    hint = fmt::format("--set train.micro_batch={}{}", half,
                       saved ? " with a new --run: the passes of a run are its identity" : "");
  }
  const auto message =
      fmt::format("out of memory with {} images a pass: {}; peak {} MiB", micro,
                  allocation_request(error), peak_memory(device_of(config)) / kMebi);
  run.log("error", {{"message", message}});
  return {ErrorKind::kDevice, message, hint};
}

}  // namespace sigma
