#include "sigma/train/stage.h"

#include <torch/types.h>

#include <algorithm>
#include <sstream>

#include "sigma/base/error.h"
#include "sigma/io/checkpoint.h"
#include "sigma/train/ema.h"
#include "sigma/train/optimizer.h"
#include "sigma/train/run.h"

namespace sigma {

void load_start(torch::nn::Module& module, const TrainConfig& config) {
  if (config.start_from.empty()) return;
  const SafetensorsFile file = newest_checkpoint(find_run(config.start_from)).open("ema-main");
  load_tensors(named_state(module), file, /*extra=*/true);
}

NamedTensors trained_parameters(torch::nn::Module& module, const TrainConfig& config) {
  std::vector<std::string> parts;
  std::istringstream words(config.only);
  for (std::string part; words >> part;) parts.push_back(part);
  std::vector<bool> used(parts.size(), false);
  NamedTensors out;
  for (const auto& item : module.named_parameters()) {
    bool trained = parts.empty();
    for (size_t i = 0; i < parts.size(); ++i) {
      if (item.key() != parts[i] && !item.key().starts_with(parts[i] + ".")) continue;
      trained = used[i] = true;
    }
    item.value().set_requires_grad(trained);
    if (trained) out.emplace_back(item.key(), item.value());
  }
  for (size_t i = 0; i < parts.size(); ++i)
    SIGMA_CHECK(kUsage, used[i], "train.only: expected names of parts of the model, got {}",
                parts[i]);
  return out;
}

}  // namespace sigma
