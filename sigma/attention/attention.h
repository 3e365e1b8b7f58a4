// The kinds of attention, chosen by configuration. There is one: dense (sigma/attention/dense.h).
// `layers` selects the blocks that use the kind; the others are dense.
#pragma once

#include <memory>
#include <string>

#include "sigma/base/config.h"
#include "sigma/nn/attention.h"

namespace sigma {

struct AttentionConfig {
  std::string kind = "dense";
  TextOrList layers = "all";
  bool qk_norm = false;
  void visit(ConfigVisitor& v);
};

std::shared_ptr<Attention> make_attention(const AttentionConfig& config, int64_t dim,
                                          int64_t num_heads);

}  // namespace sigma
