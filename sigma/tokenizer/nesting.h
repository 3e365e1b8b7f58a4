// Nested prefixes: the first k latent tokens of an image mean something alone, coarse to fine
// (Semanticist, arXiv 2503.08685; nested dropout, arXiv 1402.0915).
//
//   training    k uniform in 1 .. L, or a power of two from keep_min to L;  z_j = null_j for j >= k
//   afterwards  any k that is asked for
//
// null is learned: one a place (per_slot), or one for all (shared, ViTok, arXiv 2501.09755). k is
// drawn a sample.
#pragma once

#include <torch/types.h>

#include <string>

#include "sigma/base/config.h"
#include "sigma/base/context.h"
#include "sigma/nn/module.h"

namespace sigma {

struct NestingConfig {
  std::string kind = "none";      // none | nested
  std::string keep = "uniform";   // uniform | pow2
  int64_t keep_min = 1;           // pow2: the smallest k
  std::string null = "per_slot";  // per_slot | shared
  void visit(ConfigVisitor& v);
};

class Nesting : public Module {
 public:
  /// Errors: kUsage (keep_min that is no power of two, or above `tokens`).
  Nesting(const NestingConfig& config, int64_t tokens, int64_t channels);
  /// k of every sample of the context, int64 [B] on the CPU.
  torch::Tensor draw(const Context& context) const;
  /// c [B,L,Z], kept [B] int64 -> c with null tokens from place k on.
  torch::Tensor forward(const torch::Tensor& c, const torch::Tensor& kept) const;

 private:
  NestingConfig config_;
  int64_t tokens_;
  torch::Tensor null_;  // [L,Z] or [1,Z]
};

}  // namespace sigma
