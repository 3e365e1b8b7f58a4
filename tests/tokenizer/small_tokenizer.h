// Small tokenizers for tests.
#pragma once

#include <torch/types.h>

#include <memory>
#include <string>
#include <vector>

#include "sigma/tokenizer/tokenizer.h"

namespace sigma {

inline const std::vector<int64_t> kShape = {3, 8, 12};  // 2 x 3 patches

inline TokenizerConfig small() {
  const TrunkConfig trunk{
      .hidden_size = 16, .depth = 1, .num_heads = 2, .mlp_ratio = 2, .position = "learned"};
  TokenizerConfig config;
  config.encoder.queries = 4;
  config.bottleneck.dim = 3;
  config.encoder.trunk = config.decoder.trunk = trunk;
  config.hog = {.weight = 0, .masked_only = false, .hidden_size = 8, .num_heads = 1, .prefix = 1};
  return config;
}

inline TokenizerConfig masked(const std::string& policy) {
  TokenizerConfig config = small();
  config.mask.policy = policy;
  if (policy == "drop") config.mask.per = "step";
  return config;
}

inline TokenizerConfig in_place(const std::string& policy) {  // as MAE
  TokenizerConfig config = masked(policy);
  config.encoder.queries = 0;
  config.encoder.prefix = 1;
  config.decoder.layout = "in_place";
  return config;
}

inline std::shared_ptr<Tokenizer> make(const TokenizerConfig& config,
                                       const std::vector<int64_t>& shape = kShape) {
  auto model = std::make_shared<Tokenizer>(config, shape);
  initialize(*model, 1);
  return model;
}

inline Context training(const torch::Tensor& samples) {
  return {.training = true, .rng = {.seed = 3, .step = 5}, .samples = samples};
}

inline torch::Tensor total(const Losses& losses) {
  torch::Tensor sum = torch::zeros({});
  for (const auto& [name, loss] : losses) sum = sum + loss;
  return sum;
}

}  // namespace sigma
