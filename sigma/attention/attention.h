// The kinds of attention, chosen by configuration: dense (dense.h), sparse (sparse.h), multi_token
// (multi_token.h). `layers` selects the blocks that use the kind; the others are dense.
#pragma once

#include <memory>
#include <string>

#include "sigma/attention/multi_token.h"
#include "sigma/attention/sparse.h"
#include "sigma/base/config.h"
#include "sigma/nn/attention.h"

namespace sigma {

struct AttentionConfig {
  std::string kind = "dense";
  TextOrList layers = "all";
  bool qk_norm = false;
  bool qkv_bias = true;  // dense
  SparseConfig sparse;
  MultiTokenConfig multi_token;
  void visit(ConfigVisitor& v);
};

/// `layer`: from 0.
std::shared_ptr<Attention> make_attention(const AttentionConfig& config, int64_t dim,
                                          int64_t num_heads, const Grid& grid, int64_t layer);

}  // namespace sigma
