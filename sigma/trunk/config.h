// The configuration of a trunk: what the encoder, the decoder and the generator share.
#pragma once

#include <string>
#include <vector>

#include "sigma/attention/attention.h"
#include "sigma/base/config.h"
#include "sigma/moe/layer.h"
#include "sigma/nn/rope.h"

namespace sigma {

struct MlpConfig {
  std::string kind = "dense";  // dense | moe
  TextOrList layers = "all";
  std::string activation = "silu";  // dense: silu | gelu | gelu_tanh | geglu
  MoeConfig moe;
  void visit(ConfigVisitor& v);
};

struct TrunkConfig {
  int64_t hidden_size = 128;
  int64_t depth = 4;
  int64_t num_heads = 4;
  double mlp_ratio = 4;
  double norm_eps = 1e-6;
  bool pre_norm = false;              // a norm between positions and blocks
  double layer_scale = 0;             // start of a factor a channel on every branch; 0: none
  std::string position = "sincos2d";  // sincos2d | sincos2d_bv | sincos1d | learned | none
  RopeConfig rope;                    // beside it
  AttentionConfig attention;
  MlpConfig mlp;
  void visit(ConfigVisitor& v);
};

/// Which of `depth` blocks (from 0) a `layers` value selects: all | odd (1, 3, ...) | "every Nth"
/// (N-1, 2N-1, ...) | "from N" | a list. Errors: kUsage naming `key`.
std::vector<bool> select_layers(const TextOrList& layers, int64_t depth, const std::string& key);

}  // namespace sigma
