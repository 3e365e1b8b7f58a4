// Means of losses and statistics over the steps since the last log line.
#pragma once

#include <torch/types.h>

#include <limits>
#include <map>
#include <string>

namespace sigma {

/// The sums stay on the device until they are read, so that a GPU is not kept waiting.
class Averages {
 public:
  /// A value of the present step; values of one name add up (micro-batches).
  void add(const std::string& name, const torch::Tensor& value) {
    const torch::Tensor v = value.detach().to(torch::kDouble);
    const auto found = step_.find(name);
    if (found == step_.end()) step_.emplace(name, v.clone());
    else found->second += v;
  }
  /// Ends the step. found_inf (float scalar on the device): 1 leaves it out.
  void count(const torch::Tensor& found_inf) {
    for (const auto& [name, value] : step_) {
      const torch::Tensor kept = value.masked_fill(found_inf.to(value.device()) > 0, 0);
      const auto found = sums_.find(name);
      if (found == sums_.end()) sums_.emplace(name, kept);
      else found->second += kept;
    }
    step_.clear();
    const torch::Tensor counted = 1 - found_inf;
    steps_ = steps_.defined() ? steps_ + counted : counted;
  }
  /// NaN if every step was left out.
  std::map<std::string, double> take() {
    std::map<std::string, double> out;
    const double steps = steps_.defined() ? steps_.item<double>() : 0;
    for (const auto& [name, sum] : sums_)
      out[name] = steps > 0 ? sum.item<double>() / steps : std::numeric_limits<double>::quiet_NaN();
    sums_.clear();
    steps_.reset();
    return out;
  }

 private:
  std::map<std::string, torch::Tensor> step_, sums_;
  torch::Tensor steps_;
};

}  // namespace sigma
