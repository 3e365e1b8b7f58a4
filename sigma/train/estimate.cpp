#include <torch/types.h>

#include "sigma/train/ema.h"
#include "sigma/train/task.h"
#include "sigma/train/trainer.h"

namespace sigma {

TrainEstimate estimate(RunConfig config) {
  resolve(config);
  const TaskBundle bundle = make_task(config, /*dry_run=*/true);
  TrainEstimate out;
  int64_t bytes = 0;
  for (const auto& [name, tensor] : named_state(bundle.task->module())) {
    bytes += static_cast<int64_t>(tensor.nbytes());
  }
  out.parameters = count_parameters(bundle.task->module());
  out.steps = config.train.steps();
  out.flops_per_image = bundle.task->flops();
  out.memory_weights = 5 * bytes;    // weights, gradients, two moments, average
  out.checkpoint_bytes = 4 * bytes;  // weights, average, two moments
  out.disk_bytes = (config.checkpoint.keep_last + 1) * out.checkpoint_bytes;
  out.data_count = bundle.data->size();
  out.latents_to_write = bundle.latents_to_write;
  out.data_description = bundle.data->info().description;
  return out;
}

}  // namespace sigma
