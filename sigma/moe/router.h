// Routers: which experts a token uses, and how much.
//
//   token choice   s = softmax(l) or sigmoid(l);  r = s + b, b the selection bias
//                  groups: the best `top_groups` by their largest r, or by their two largest
//                  chosen: the K largest r;  g = s of the chosen [/ (sum g + 1e-20)] * scale
//                  DeepSeekMoE (arXiv 2401.06066): softmax; V2 (2405.04434): groups, scale;
//                  V3 (2412.19437): sigmoid, bias, groups by two, normalised, scale
//   expert choice  (arXiv 2410.02098, a pool an image) s = softmax over experts; every expert takes
//                  the k largest s of an image's tokens, k = floor(N capacity / E), 1 .. N;  g = s
//
// l [T,E] in at least float32, T = images x N. Choosing has no gradient; g has. "The k largest" is
// by value, then by lower index; NaN comes last, so that a bad logit never gives a bad index.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <string>

#include "sigma/base/config.h"

namespace sigma {

struct RouterConfig {
  std::string kind = "token_choice";  // token_choice | expert_choice
  std::string score = "softmax";      // softmax | sigmoid
  bool normalize = false;
  double scale = 1;
  int64_t groups = 1;
  int64_t top_groups = 1;
  std::string group_score = "max";  // max | top2_sum
  double capacity = 2;              // expert choice: mean experts of a token
  void visit(ConfigVisitor& v);
};

/// Pairs of a token and an expert. Token choice: pair t K + j is the j-th of token t, best first.
/// Expert choice: by image, expert, token.
struct Routing {
  torch::Tensor pair_token;   // [P] int64
  torch::Tensor pair_expert;  // [P] int64
  torch::Tensor pair_weight;  // [P] g
  torch::Tensor scores;       // [T,E] s
  int64_t pairs_a_token = 0;  // token choice: K
};

/// Expert choice: tokens of an image of N that each expert takes.
int64_t tokens_of_an_expert(int64_t N, double capacity, int64_t num_experts);
/// Errors: kUsage (groups that do not divide the experts, too few experts in the groups, ...).
void check_router(const RouterConfig& config, int64_t num_experts, int64_t num_chosen);
/// `bias` [E], or undefined. `images` divides T.
Routing route(const RouterConfig& config, int64_t num_chosen, const torch::Tensor& logits,
              const torch::Tensor& bias, int64_t images);

}  // namespace sigma
