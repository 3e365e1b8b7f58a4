// rope_*: tables and rotation with gradients. dense_*: the dense layer, where its options are
// built.
#include <torch/types.h>

#include "sigma/attention/dense.h"
#include "sigma/nn/rope.h"
#include "tests/golden_runners/golden.h"

namespace sigma::golden {
namespace {

using torch::Tensor;

/// Metadata of one file as an object, so that number() and require() read it.
Json metadata(const GoldenFile& file, const std::vector<std::string>& keys) {
  Json out = Json::object();
  for (const auto& key : keys) {
    const Json value = file.meta(key);
    if (!value.is_null()) out[key] = value;
  }
  return out;
}

Json attention_options(const GoldenFile& file) {
  return metadata(file, {"axes", "axis_dims", "grid", "head_dim", "pairing", "position",
                         "rotary_dim", "theta", "heads", "kv_heads", "causal", "key_valid",
                         "qk_norm", "qk_norm_eps", "num_prefix", "rope_pairing"});
}

RopeConfig rope_config(const Json& options) {
  RopeConfig config;
  require(options, "position", {"index"});
  require(options, "pairing", {"interleaved", "half"});
  config.pairing = text(options, "pairing", "interleaved");
  const Json theta = options.value("theta", Json());
  if (theta.is_array() && !theta.empty()) {
    for (const Json& axis : theta) {
      if (axis != theta[0]) throw Skip{"rope theta per axis"};
    }
    config.theta = theta[0].get<double>();
  } else if (theta.is_number()) {
    config.theta = theta.get<double>();
  }
  if (options.contains("axis_dims"))
    config.axis_dims = options["axis_dims"].get<std::vector<int64_t>>();
  return config;
}

TokenLayout layout_of(const Json& options, int64_t tokens) {
  TokenLayout layout;
  const auto grid = options.find("grid");
  if (grid != options.end()) {
    layout.grid = {(*grid)[0].get<int64_t>(), (*grid)[1].get<int64_t>(), (*grid)[2].get<int64_t>()};
  } else {
    layout.grid = {1, 1, tokens};
  }
  return layout;
}

/// Rotates q and k by `cos`, `sin` and compares outputs and gradients. `order` reorders channels to
/// the library's, if defined.
void check_rotation(const GoldenFile& file, const Tensor& cos, const Tensor& sin, bool interleaved,
                    const Tensor& order, double bound, const std::string& note, Report& report) {
  const auto get = [&](const std::string& name) {
    const Tensor x = file.get(name);
    return order.defined() ? x.index_select(-1, order) : x;
  };
  for (const std::string side : {"q", "k"}) {
    if (!file.has(side) || !file.has("out_" + side)) continue;
    const Tensor x = get(side).requires_grad_();
    const Tensor out = rotate_pairs(x, cos, sin, interleaved);
    report.relative("out_" + side + note, out, get("out_" + side), bound);
    if (!file.has("grad_out_" + side) || !file.has("grad_" + side)) continue;
    (out * get("grad_out_" + side)).sum().backward();
    report.relative("grad_" + side + note, x.grad(), get("grad_" + side), std::max(bound, 2e-7));
  }
}

}  // namespace

void run_rope(const GoldenFile& file, Report& report) {
  const Json options = attention_options(file);
  const bool narrow = file.is_float32("cos");
  const Tensor cos = file.get("cos");
  const Tensor sin = file.get("sin");
  const bool interleaved = text(options, "pairing", "interleaved") == "interleaved";
  const Tensor order = file.has("channel_permutation") ? file.get("channel_permutation") : Tensor();

  // The rotation alone, by the stored tables.
  check_rotation(file, cos, sin, interleaved, order, narrow ? 4 * kEps32 : 1e-12, "", report);
  if (file.has("freqs") || cos.dim() > 2) {
    report.skip("rope mixed");
    return;
  }

  // The tables, from positions and from the grid.
  sub_case(report, [&] {
    const RopeConfig config = rope_config(options);
    int64_t rotary = 0;
    for (const int64_t dims : config.axis_dims) rotary += dims;
    const int64_t head_dim =
        whole(options, "head_dim", std::max<int64_t>(rotary, 2 * cos.size(-1)));
    const TokenLayout layout = layout_of(options, cos.size(0));
    const Rope rope(config, head_dim, layout, torch::kDouble, device());
    const std::string dtype =
        file.meta("dtype").is_string() ? file.meta("dtype").get<std::string>() : "";
    const bool float64_angles = dtype.find("float64 angles") != std::string::npos;
    // One axis may come as a plain list.
    const Tensor positions =
        file.has("positions") ? file.get("positions").reshape({cos.size(0), -1}) : Tensor();
    const double far = positions.defined() ? positions.abs().max().item<double>()
                                           : static_cast<double>(cos.size(0));
    // An angle carries a relative rounding error; float32 angles at position p are off by 2 eps p.
    const double bound = !narrow          ? 4 * kEps64 * (1 + far)
                         : float64_angles ? kEps32 / 2
                                          : 2 * kEps32 * (1 + far);
    const auto check_table = [&](const RopeTable& table, const std::string& note) {
      report.absolute("cos" + note, table.cos, cos, bound);
      report.absolute("sin" + note, table.sin, sin, bound);
    };
    if (options.contains("grid")) check_table(rope.table(), " of the grid");
    if (positions.defined()) check_table(rope.at(positions), " of the positions");
    if (narrow && float64_angles && positions.defined()) {
      const Rope rounded(config, head_dim, layout, torch::kFloat, device());
      report.absolute("cos in float32", rounded.at(positions).cos, cos, kEps32 / 2);
      report.absolute("sin in float32", rounded.at(positions).sin, sin, kEps32 / 2);
    }
    if (options.contains("grid")) {
      const double rotation = narrow ? bound + 4 * kEps32 : 1e-12 + bound;
      check_rotation(file, rope.table().cos, rope.table().sin, interleaved, order, rotation,
                     ", our table", report);
    }
  });
}

void run_dense(const GoldenFile& file, Report& report) {
  const Json options = attention_options(file);
  require(options, "key_valid", {false});
  require(options, "position", {"index"});
  if (whole(options, "kv_heads", whole(options, "heads", 1)) != whole(options, "heads", 1))
    throw Skip{"attention kv_heads"};
  require(options, "causal", {"none", "token"});
  const bool qk_norm = flag(options, "qk_norm", false);
  if (qk_norm) require(options, "qk_norm_eps", {1e-6});
  if (!file.has("w_qkv")) throw Skip{"attention separate projections"};

  const Tensor x = file.get("x").requires_grad_();
  const int64_t dim = x.size(2);
  const int64_t heads = whole(options, "heads", 1);
  if (whole(options, "head_dim", dim / heads) != dim / heads) throw Skip{"attention head_dim"};
  DenseAttention attention(dim, heads, qk_norm);
  attention.to(device(), torch::kDouble);
  auto p = attention.named_parameters();
  const auto bias = [&](const std::string& name) {
    return file.has(name) ? file.get(name) : torch::zeros({dim}, file.get("w_qkv").options());
  };
  {
    const torch::NoGradGuard no_grad;
    p["qkv.weight"].copy_(file.get("w_qkv"));
    p["qkv.bias"].copy_(torch::cat({bias("b_q"), bias("b_k"), bias("b_v")}));
    p["proj.weight"].copy_(file.get("w_o"));
    p["proj.bias"].copy_(bias("b_o"));
    if (qk_norm) {
      p["q_norm.weight"].copy_(file.get("q_norm_weight"));
      p["k_norm.weight"].copy_(file.get("k_norm_weight"));
    }
  }
  TokenLayout layout = layout_of(options, x.size(1));
  layout.before = whole(options, "num_prefix", 0);
  if (text(options, "causal", "none") == "token") layout.pattern = Pattern::kCausal;
  const Rope rope(rope_config(options), dim / heads, layout, torch::kDouble, device());
  const Tensor out = attention.forward(x, layout, file.has("cos") ? &rope : nullptr, Context{});
  report.relative("out", out, file.get("out"), 1e-11);
  if (!file.has("grad_out")) return;
  (out * file.get("grad_out")).sum().backward();
  const auto gradient = [&](const std::string& name, const Tensor& actual) {
    if (file.has(name)) report.relative(name, actual, file.get(name), 2e-7);
  };
  gradient("grad_x", x.grad());
  gradient("grad_w_qkv", p["qkv.weight"].grad());
  gradient("grad_b_q", p["qkv.bias"].grad().narrow(0, 0, dim));
  gradient("grad_b_v", p["qkv.bias"].grad().narrow(0, 2 * dim, dim));
  gradient("grad_w_o", p["proj.weight"].grad());
  gradient("grad_b_o", p["proj.bias"].grad());
  if (qk_norm) {
    gradient("grad_q_norm_weight", p["q_norm.weight"].grad());
    gradient("grad_k_norm_weight", p["k_norm.weight"].grad());
  }
}

}  // namespace sigma::golden
