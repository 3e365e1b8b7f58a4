// mta_*: multi-token attention, the operator with its gradients, and the layer around it.
#include <torch/autograd.h>
#include <torch/types.h>

#include "sigma/attention/multi_token.h"
#include "sigma/nn/rope.h"
#include "tests/golden_runners/attention_inputs.h"

namespace sigma::golden {
namespace {

using torch::Tensor;

constexpr double kBound = 1e-11;     // outputs: float64 throughout
constexpr double kGradBound = 2e-7;  // gradients are stored in float32

int64_t whole_meta(const GoldenFile& file, const std::string& key) {
  const Json value = file.meta(key);
  return value.is_number() ? value.get<int64_t>() : 0;
}

bool flag_meta(const GoldenFile& file, const std::string& key) {
  const Json value = file.meta(key);
  return value.is_boolean() && value.get<bool>();
}

// Weights that collect gradients: the tensors of a file, by name.
class Leaves {
 public:
  explicit Leaves(const GoldenFile& file) : file_(file) {}
  Tensor operator()(const std::string& name) {
    if (!file_.has(name)) return {};
    return leaves_.emplace(name, file_.get(name).requires_grad_()).first->second;
  }
  void check(Report& report, const std::string& note) const {
    for (const auto& [name, leaf] : leaves_) {
      if (file_.has("grad_" + name))
        report.relative("grad_" + name + note, leaf.grad(), file_.get("grad_" + name), kGradBound);
    }
  }

 private:
  const GoldenFile& file_;
  std::map<std::string, Tensor> leaves_;
};

// From the layer's input to its output: projections and rotation here, the rest is the library's.
void run_layer(const GoldenFile& file, Report& report) {
  Leaves leaf(file);
  const Tensor x = leaf("x");
  const int64_t D = whole_meta(file, "head_dim");
  const auto project = [&](const char* name) {
    return torch::matmul(x, leaf(name).t()).unflatten(-1, {-1, D}).transpose(1, 2);
  };
  const auto rotated = [&](const Tensor& t) {
    return rotate_pairs(t, file.get("rope_cos"), file.get("rope_sin"), true);
  };
  const Tensor q = rotated(project("w_q"));
  const Tensor k = rotated(project("w_k"));
  const Tensor v = project("w_v");
  Tensor heads = multi_token_attention(golden_multi_token(file, leaf, q, k, v)).out;

  const Json gate = file.meta("gate");
  if (gate == "channel") throw Skip{"attention gate channel"};
  MultiTokenConfig config{.pre_conv = false,
                          .post_conv = false,
                          .post_heads = 1,
                          .norm = flag_meta(file, "norm"),
                          .gate = gate.is_string() ? gate.get<std::string>() : "none",
                          .depth_scale = flag_meta(file, "depth_scale")};
  MultiTokenAttention layer(config, q.size(1) * D, q.size(1), false, {1, 1, q.size(2)},
                            whole_meta(file, "layer_index"));
  layer.to(device(), torch::kDouble);
  std::map<std::string, std::string> stored = {
      {"norm.weight", "norm_weight"}, {"gate.weight", "gate_weight"}, {"gate.bias", "gate_bias"}};
  auto parameters = layer.named_parameters();
  {
    const torch::NoGradGuard no_grad;
    for (const auto& [name, from] : stored)
      if (parameters.contains(name)) parameters[name].copy_(file.get(from));
  }
  heads = layer.finish(heads);
  const Tensor out = torch::matmul(heads.transpose(1, 2).flatten(2), leaf("w_o").t());
  report.relative("out", out, file.get("out"), kBound);
  (out * file.get("grad_out")).sum().backward();
  for (const auto& [name, from] : stored)
    if (parameters.contains(name))
      report.relative("grad_" + from, parameters[name].grad(), file.get("grad_" + from),
                      kGradBound);
  leaf.check(report, "");
}

}  // namespace

void run_multi_token(const GoldenFile& file, Report& report) {
  Leaves leaf(file);
  const AttentionOutput core =
      multi_token_attention(golden_multi_token(file, leaf, leaf("q"), leaf("k"), leaf("v")));
  report.relative("core_out", core.out, file.get("core_out"), kBound);
  if (core.lse.defined()) report.relative("lse", core.lse, file.get("lse"), kBound);
  (core.out * file.get("grad_core_out")).sum().backward();
  for (const char* name : {"q", "k", "v"})
    report.relative(std::string("core grad_") + name, leaf(name).grad(),
                    file.get(std::string("grad_") + name), kGradBound);
  sub_case(report, [&] { run_layer(file, report); });
}

}  // namespace sigma::golden
