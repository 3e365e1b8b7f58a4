#include "sigma/train/optimizer.h"

#include <torch/types.h>

#include <cmath>
#include <numbers>
#include <set>

#include "sigma/base/error.h"

namespace sigma {

using torch::Tensor;

AdamW::AdamW(NamedTensors parameters, const OptimizerConfig& config)
    : parameters_(std::move(parameters)), config_(config) {
  for (const auto& [name, parameter] : parameters_) {
    values_.push_back(parameter);
    exp_avgs_.push_back(torch::zeros_like(parameter));
    exp_avg_sqs_.push_back(torch::zeros_like(parameter));
    steps_.push_back(
        torch::zeros({}, parameter.options().dtype(torch::kFloat).requires_grad(false)));
  }
}

void AdamW::zero_grad() {
  for (Tensor& value : values_) value.mutable_grad() = Tensor();
}

Tensor AdamW::grad_norm() const {
  std::vector<Tensor> grads;
  for (const Tensor& value : values_) {
    if (value.grad().defined()) grads.push_back(value.grad());
  }
  SIGMA_CHECK(kFailure, !grads.empty(), "optimizer: no parameter has a gradient");
  return torch::stack(at::_foreach_norm(grads)).norm();
}

void AdamW::clip(const Tensor& norm) {
  if (config_.grad_clip <= 0) return;
  const Tensor scale = (config_.grad_clip / (norm + 1e-6)).clamp_max(1.0);
  for (Tensor& value : values_) {
    if (value.grad().defined()) value.mutable_grad().mul_(scale);
  }
}

void AdamW::step(double lr, const Tensor& found_inf) {
  const torch::NoGradGuard no_grad;
  // A parameter without a gradient (an expert no token chose) stays as it is.
  std::vector<Tensor> values, grads, exp_avgs, exp_avg_sqs, steps;
  for (size_t i = 0; i < values_.size(); ++i) {
    if (!values_[i].grad().defined()) continue;
    values.push_back(values_[i]);
    grads.push_back(values_[i].grad());
    exp_avgs.push_back(exp_avgs_[i]);
    exp_avg_sqs.push_back(exp_avg_sqs_[i]);
    steps.push_back(steps_[i]);
  }
  at::_foreach_add_(steps, 1 - found_inf);
  at::_fused_adamw_(values, grads, exp_avgs, exp_avg_sqs, /*max_exp_avg_sqs=*/{}, steps, lr,
                    config_.beta1, config_.beta2, config_.weight_decay, config_.eps,
                    /*amsgrad=*/false, /*maximize=*/false,
                    /*grad_scale=*/std::nullopt, found_inf);
}

void AdamW::forget(const std::string& parameter, const Tensor& rows) {
  const Tensor column = rows.unsqueeze(1);
  for (size_t i = 0; i < parameters_.size(); ++i) {
    if (parameters_[i].first != parameter) continue;
    exp_avgs_[i].masked_fill_(column, 0);
    exp_avg_sqs_[i].masked_fill_(column, 0);
  }
}

NamedTensors AdamW::state() const {
  NamedTensors out;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    out.emplace_back("exp_avg." + parameters_[i].first, exp_avgs_[i]);
    out.emplace_back("exp_avg_sq." + parameters_[i].first, exp_avg_sqs_[i]);
    out.emplace_back("step." + parameters_[i].first, steps_[i]);
  }
  return out;
}

void AdamW::load(const SafetensorsFile& file) { load_tensors(state(), file); }

double learning_rate(const ScheduleConfig& schedule, double lr, int64_t step, int64_t total) {
  if (step <= schedule.warmup_steps) {
    return lr * static_cast<double>(step) / static_cast<double>(schedule.warmup_steps);
  }
  if (schedule.kind == "constant") return lr;
  const double done = static_cast<double>(step) / static_cast<double>(total);
  const double x = std::max(0.0, (done - schedule.decay_from) / (1 - schedule.decay_from));
  return lr * (schedule.final + (1 - schedule.final) * 0.5 * (1 + std::cos(std::numbers::pi * x)));
}

void load_tensors(const NamedTensors& targets, const SafetensorsFile& file, bool extra) {
  const torch::NoGradGuard no_grad;
  std::set<std::string> expected;
  std::string problems;
  std::vector<std::pair<Tensor, Tensor>> copies;
  for (const auto& [name, target] : targets) {
    expected.insert(name);
    if (!file.contains(name)) {
      problems += fmt::format("\n  missing: {}", name);
      continue;
    }
    const Tensor stored = file.load(name);
    if (stored.sizes() != target.sizes()) {
      problems += fmt::format("\n  shape of {}: expected [{}], got [{}]", name,
                              fmt::join(target.sizes(), ","), fmt::join(stored.sizes(), ","));
    } else if (stored.scalar_type() != target.scalar_type()) {
      problems +=
          fmt::format("\n  dtype of {}: expected {}, got {}", name,
                      torch::toString(target.scalar_type()), torch::toString(stored.scalar_type()));
    } else {
      copies.emplace_back(target, stored);
    }
  }
  for (const auto& entry : file.entries()) {
    if (!extra && !expected.contains(entry.name))
      problems += fmt::format("\n  not in the model: {}", entry.name);
  }
  SIGMA_CHECK(kCheckpoint, problems.empty(), "{} does not fit:{}", file.path().string(), problems);
  for (auto& [target, stored] : copies) target.copy_(stored);
}

}  // namespace sigma
