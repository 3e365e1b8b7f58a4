// The configuration of a published tokenizer from a golden file's options.
#pragma once

#include <vector>

#include "tests/golden_runners/published_tokenizer.h"

namespace sigma::golden {

struct PublishedConfig {
  TokenizerConfig tokenizer;
  std::vector<int64_t> image_shape;
  int64_t keep = -1;
};

/// `computed`: fixed positions are ours, not the stored tables.
PublishedConfig published_config(const GoldenFile& file, bool computed);

}  // namespace sigma::golden
