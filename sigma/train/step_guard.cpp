#include "sigma/train/step_guard.h"

#include <torch/types.h>

#include <cmath>

#include "sigma/base/error.h"
#include "sigma/train/ema.h"

namespace sigma {

using torch::Tensor;

StepGuard::StepGuard(const TrainConfig& config, torch::nn::Module& module, Run& run,
                     Progress& progress)
    : config_(config), run_(run), progress_(progress), finite_(device_of(config)) {
  if (config.on_nonfinite != "skip") return;
  for (const auto& [name, tensor] : named_state(module)) live_.push_back(tensor);
}

void StepGuard::begin() {
  kept_.clear();
  for (const Tensor& tensor : live_) kept_.push_back(tensor.clone());
}

Tensor StepGuard::record(const Tensor& loss, const Tensor& norm) {
  return finite_.record(loss, norm);
}

void StepGuard::end(const Tensor& found_inf, int64_t step) {
  const torch::NoGradGuard no_grad;
  if (!found_inf.is_cpu() || found_inf.item<float>() != 0) {
    const Tensor skipped = found_inf > 0;  // read on the device: a GPU is not kept waiting
    for (size_t i = 0; i < live_.size(); ++i)
      live_[i].copy_(torch::where(skipped, kept_[i], live_[i]));
  }
  if (finite_.immediate()) check(step);
}

void StepGuard::check(int64_t step) {
  const auto values = finite_.take();
  if (!values) return;
  if (std::isfinite(values->loss) && std::isfinite(values->norm)) {
    in_row_ = 0;
    return;
  }
  progress_.end_line();
  const auto images =
      fmt::format("images [{}, {}) of the run", (step - 1) * config_.batch, step * config_.batch);
  if (config_.on_nonfinite == "skip" && in_row_ < config_.max_skips) {
    ++in_row_;
    ++skipped_;
    run_.warn(fmt::format("step {} is skipped: loss {}, gradient norm {}; {}", step, values->loss,
                          values->norm, images));
    return;
  }
  Checkpoint last;
  const bool saved = run_.checkpoints().latest(last, /*check_hashes=*/false);
  const auto message = fmt::format(
      "step {}: expected a finite loss and gradient, got loss {} and norm {} after {} skipped "
      "steps in a row; {}; last checkpoint: {}",
      step, values->loss, values->norm, in_row_, images, saved ? last.folder.string() : "none");
  run_.log("error", {{"step", step}, {"message", message}});
  throw Error(ErrorKind::kNonFinite, message,
              "the weights were not changed by this step; try a lower train.optimizer.lr, more "
              "schedule.warmup_steps, or train.optimizer.grad_clip");
}

}  // namespace sigma
