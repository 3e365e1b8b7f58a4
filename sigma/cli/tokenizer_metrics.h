// Which metrics `sigma eval` measures of a tokenizer.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "sigma/train/config.h"

namespace sigma {

/// Of an image, for PCA and for the probe on pixels: their memory grows with the square.
inline constexpr int64_t kMaxPcaNumbers = 4096;

/// What the metrics are measured on.
struct TokenizerImages {
  std::vector<int64_t> shape;  // [C,y,x] without padding
  int64_t latent_numbers = 0;  // L Z
  int64_t classes = 0;         // 0: no labels
  int64_t numbers() const { return shape.at(0) * shape.at(1) * shape.at(2); }
};

struct MetricChoice {
  std::set<std::string> wanted;
  std::map<std::string, std::string> obstacles;  // why a metric is not measured
};

/// Names that --metrics takes for a tokenizer.
std::vector<std::string> tokenizer_metrics();
/// What was asked for; of nothing, all that says something of this tokenizer, and why what else
/// could be expected is left out. Errors: kUsage (a metric asked for that cannot be measured).
MetricChoice choose_tokenizer_metrics(const RunConfig& config, const TokenizerImages& images,
                                      std::vector<std::string> asked);

}  // namespace sigma
