// Means of losses and statistics over the steps since the last log line.
#pragma once

#include <torch/types.h>

#include <algorithm>
#include <map>
#include <string>

namespace sigma {

/// The sums stay on the device until they are read, so that a GPU is not kept waiting.
class Averages {
 public:
  void add(const std::string& name, const torch::Tensor& value) {
    const torch::Tensor v = value.detach().to(torch::kDouble);
    const auto found = sums_.find(name);
    if (found == sums_.end()) sums_.emplace(name, v.clone());
    else found->second += v;
  }
  void count() { ++steps_; }
  std::map<std::string, double> take() {
    std::map<std::string, double> out;
    for (const auto& [name, sum] : sums_)
      out[name] = sum.item<double>() / static_cast<double>(std::max<int64_t>(steps_, 1));
    sums_.clear();
    steps_ = 0;
    return out;
  }

 private:
  std::map<std::string, torch::Tensor> sums_;
  int64_t steps_ = 0;
};

}  // namespace sigma
