#include "sigma/trunk/config.h"

#include <charconv>

#include "sigma/base/error.h"

namespace sigma {

void MlpConfig::visit(ConfigVisitor& v) {
  v.choice("kind", kind, {"dense", "moe"}, "kind of mlp: dense, or mixture of experts");
  v.field(
      "layers", layers,
      "blocks that use this kind: all, odd, \"every 4th\", \"from 1\" or a list; the others dense");
  v.choice("activation", activation, {"silu", "gelu", "gelu_tanh", "geglu"}, "of dense mlps");
  if (v.when(kind, "moe")) moe.visit(v);
}

void TrunkConfig::visit(ConfigVisitor& v) {
  v.field("hidden_size", hidden_size, in(8, 8192), "channels of a token");
  v.field("depth", depth, in(1, 128), "blocks");
  v.field("num_heads", num_heads, in(1, 128), "attention heads; divides hidden_size");
  v.field("mlp_ratio", mlp_ratio, above(0, 16), "width of a dense mlp over hidden_size");
  v.field("norm_eps", norm_eps, in(1e-12, 0.01), "added to the variance in norms");
  v.field("pre_norm", pre_norm, "a norm between positions and blocks");
  v.field("layer_scale", layer_scale, in(0, 1),
          "start of a learned factor a channel on every branch; 0 = none");
  v.choice("position", position, {"sincos2d", "sincos2d_bv", "sincos1d", "learned", "none"},
           "what is added to a token for its place");
  v.table("rope", rope, "rotary embeddings");
  v.table("attention", attention, "the attention slot of the blocks");
  v.table("mlp", mlp, "the mlp slot of the blocks");
}

std::vector<bool> select_layers(const TextOrList& layers, int64_t depth, const std::string& key) {
  std::vector<bool> selected(static_cast<size_t>(depth), false);
  if (const auto* list = std::get_if<std::vector<int64_t>>(&layers)) {
    for (const int64_t layer : *list) {
      SIGMA_CHECK(kUsage, layer >= 0 && layer < depth, "{}: expected blocks in [0, {}), got {}",
                  key, depth, layer);
      selected[static_cast<size_t>(layer)] = true;
    }
    return selected;
  }
  const std::string& text = std::get<std::string>(layers);
  int64_t first = 0, step = 0;
  const auto number_after = [&](std::string_view word, int64_t& number) {
    std::from_chars(text.data() + word.size(), text.data() + text.size(), number);
  };
  if (text == "all") step = 1;
  if (text == "odd") step = 2;
  if (text.starts_with("every ")) number_after("every ", step);
  if (step > 1) first = step - 1;
  if (text.starts_with("from ")) {
    first = -1;
    number_after("from ", first);
    step = 1;
  }
  SIGMA_CHECK(kUsage, step >= 1 && first >= 0,
              "{} = \"{}\": expected all, odd, \"every Nth\", \"from N\" or a list of blocks", key,
              text);
  for (int64_t i = first; i < depth; i += step) selected[static_cast<size_t>(i)] = true;
  return selected;
}

}  // namespace sigma
