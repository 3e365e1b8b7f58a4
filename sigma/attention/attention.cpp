#include "sigma/attention/attention.h"

#include "sigma/attention/dense.h"

namespace sigma {

void AttentionConfig::visit(ConfigVisitor& v) {
  v.choice("kind", kind, {"dense"}, "kind of attention");
  v.field("layers", layers,
          "blocks that use this kind: all, odd, \"every 4th\" or a list; the others are dense");
  v.field("qk_norm", qk_norm, "RMS norm of queries and keys");
}

std::shared_ptr<Attention> make_attention(const AttentionConfig& config, int64_t dim,
                                          int64_t num_heads) {
  return std::make_shared<DenseAttention>(dim, num_heads, config.qk_norm);
}

}  // namespace sigma
