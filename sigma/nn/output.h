// What Mlp, Block, Trunk, networks and objectives return: a value, and losses and statistics by
// name. The trainer adds the losses up and logs the means of the statistics.
#pragma once

#include <torch/types.h>

#include <map>
#include <string>

namespace sigma {

/// Name -> scalar, already multiplied by its configured weight: the trainer only adds them up.
using Losses = std::map<std::string, torch::Tensor>;
/// Name -> scalar for the log, detached.
using Statistics = std::map<std::string, torch::Tensor>;

struct Output {
  torch::Tensor value;
  Losses losses;          // none under no_grad
  Statistics statistics;  // none unless the Context records

  /// Adds the losses and statistics of a part; equal names are summed (losses of layers add up).
  void absorb(const Output& part) {
    for (const auto& [name, loss] : part.losses) add(losses, name, loss);
    for (const auto& [name, statistic] : part.statistics) add(statistics, name, statistic);
  }

 private:
  static void add(std::map<std::string, torch::Tensor>& into, const std::string& name,
                  const torch::Tensor& value) {
    const auto found = into.find(name);
    if (found == into.end()) into.emplace(name, value);
    else found->second = found->second + value;
  }
};

}  // namespace sigma
