#include "sigma/attention/attention.h"

#include "sigma/attention/dense.h"

namespace sigma {

void AttentionConfig::visit(ConfigVisitor& v) {
  v.choice("kind", kind, {"dense", "sparse", "multi_token"}, "kind of attention");
  v.field(
      "layers", layers,
      "blocks that use this kind: all, odd, \"every 4th\", \"from 1\" or a list; the others dense");
  v.field("qk_norm", qk_norm, "RMS norm of queries and keys");
  v.field("qkv_bias", qkv_bias, "biases of queries, keys and values of dense attention");
  if (v.when(kind, "sparse")) sparse.visit(v);
  if (v.when(kind, "multi_token")) multi_token.visit(v);
}

std::shared_ptr<Attention> make_attention(const AttentionConfig& config, int64_t dim,
                                          int64_t num_heads, const Grid& grid, int64_t layer) {
  if (config.kind == "sparse")
    return std::make_shared<SparseAttention>(config.sparse, dim, num_heads, config.qk_norm, grid);
  if (config.kind == "multi_token")
    return std::make_shared<MultiTokenAttention>(config.multi_token, dim, num_heads, config.qk_norm,
                                                 grid, layer);
  return std::make_shared<DenseAttention>(dim, num_heads, config.qk_norm, config.qkv_bias);
}

}  // namespace sigma
