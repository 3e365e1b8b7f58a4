// rope2d-mixed-*, movq-*: the parts of MAETok's published trunk.
#include <torch/autograd.h>
#include <torch/types.h>

#include "sigma/nn/rope.h"
#include "sigma/trunk/trunk.h"
#include "tests/golden_runners/golden.h"

namespace sigma::golden {
namespace {

using torch::Tensor;

constexpr double kBound = 1e-12;
constexpr double kRounded = 1e-6;  // gradients of weights are stored in float32

Grid grid_of(const Json& options) {
  return {.frames = 1, .height = options["grid"][0], .width = options["grid"][1]};
}

// phi [depth, H] -> [2, depth, H, D/2], as sigma/nn/module.h has it.
Tensor frequencies(const Tensor& phi, double theta, int64_t head_dim) {
  const Tensor g = torch::pow(
      theta, torch::arange(head_dim / 4, phi.options()) * (-4.0 / static_cast<double>(head_dim)));
  const Tensor x = phi.unsqueeze(2).cos() * g, y = phi.unsqueeze(2).sin() * g;
  return torch::stack({torch::cat({x, -y}, 2), torch::cat({y, x}, 2)});
}

}  // namespace

void run_rope_mixed(const GoldenFile& file, Report& report) {
  const Json& options = file.options();
  const int64_t depth = whole(options, "depth", 0), H = whole(options, "heads", 0);
  const int64_t D = whole(options, "head_dim", 0);
  const double theta = number(options["position"], "theta", 0);
  const TokenLayout layout{.grid = grid_of(options)};
  const Tensor published = file.get("input.freqs").requires_grad_();
  const Tensor q = file.get("input.q").requires_grad_(), k = file.get("input.k").requires_grad_();
  std::vector<Tensor> tables, turned_q, turned_k;
  for (int64_t layer = 0; layer < depth; ++layer) {
    const Rope rope(published.view({2, depth, H, D / 2}).select(1, layer), true, layout);
    tables.push_back(torch::stack({rope.table().cos, rope.table().sin}, -1));
    turned_q.push_back(rope.rotate(q[layer], rope.table()));
    turned_k.push_back(rope.rotate(k[layer], rope.table()));
  }
  report.relative("cos_sin", torch::stack(tables), file.get("output.cos_sin"), kBound);
  report.relative("q", torch::stack(turned_q), file.get("output.q"), kBound);
  report.relative("k", torch::stack(turned_k), file.get("output.k"), kBound);
  ((torch::stack(turned_q) * file.get("upstream.q")).sum() +
   (torch::stack(turned_k) * file.get("upstream.k")).sum())
      .backward();
  for (const auto& [name, leaf] : {std::pair{"q", q}, {"k", k}, {"freqs", published}})
    report.by_norm(std::string("grad.") + name, leaf.grad(), file.get(std::string("grad.") + name),
                   kRounded);

  // The start of a trunk's frequencies is the published formula at angles of its own.
  const Tensor init = frequencies(file.get("input.phi"), theta, D);
  report.relative("init_freqs", init.view({2, depth, H * D / 2}), file.get("output.init_freqs"),
                  4 * kEps32);  // published in float32
  TrunkConfig config{.hidden_size = H * D, .depth = depth, .num_heads = H, .position = "none"};
  config.rope = {.kind = "mixed", .theta = theta};
  Trunk trunk(config, layout.grid, Conditioning::kNone);
  initialize(trunk, 1);
  const Tensor start = trunk.named_parameters()["rope_freqs"].detach().to(torch::kDouble);
  const Tensor phi = torch::atan2(start[1].select(2, 0), start[0].select(2, 0));
  report.relative("start", start, frequencies(phi, theta, D), 4 * kEps32);
  report.is_true("start: every layer and head has its own angle",
                 (phi.flatten().diff().abs() > 1e-3).all().item<bool>());
}

// One block, then the published final norm, which a trunk leaves to its caller.
void run_movq(const GoldenFile& file, Report& report) {
  const Json& options = file.options();
  TrunkConfig config{.hidden_size = whole(options["trunk"], "width", 0),
                     .depth = 1,
                     .num_heads = whole(options["trunk"], "heads", 0),
                     .position = "none"};
  config.mlp.activation = text(options["trunk"], "mlp", "");
  if (file.has("input.freqs")) config.rope.kind = "mixed";
  const TokenLayout layout{.before = whole(options, "prefix", 0),
                           .grid = grid_of(options),
                           .after = whole(options, "queries", 0)};
  const double offset = number(options, "scale_offset", 0);
  Trunk trunk(config, layout.grid, Conditioning::kLatentTokens,
              {.dim = whole(options, "dim", 0), .scale_offset = offset});
  trunk.to(device(), torch::kDouble);
  std::map<std::string, Tensor> parameters;  // by published names
  {
    const torch::NoGradGuard no_grad;
    for (auto& item : trunk.named_parameters()) {
      const bool turns = item.key() == "rope_freqs";
      const std::string name =
          turns ? "freqs" : "block." + item.key().substr(std::string("blocks.0.").size());
      item.value().copy_(
          file.get((turns ? "input." : "weight.") + name).view(item.value().sizes()));
      parameters[name] = item.value();
    }
  }
  for (const std::string name : {"weight", "bias"})
    parameters["norm.adaLN_modulation.1." + name] =
        file.get("weight.norm.adaLN_modulation.1." + name).requires_grad_();

  const Tensor x = file.get("input.x").requires_grad_();
  const Tensor latents = file.get("input.latents").requires_grad_();
  const Tensor block = trunk.forward(x, layout, latents, {}).value;
  report.relative("block", block, file.get("output.block"), kBound);
  const auto m = torch::linear(torch::silu(latents), parameters["norm.adaLN_modulation.1.weight"],
                               parameters["norm.adaLN_modulation.1.bias"])
                     .chunk(2, 2);
  const Tensor norm = modulate_latents(
      torch::layer_norm(block, {block.size(2)}, {}, {}, config.norm_eps), m[0], m[1], offset);
  report.relative("norm", norm, file.get("output.norm"), kBound);
  (norm * file.get("upstream.norm")).sum().backward();
  parameters["x"] = x;
  parameters["latents"] = latents;
  for (const std::string& name : file.names()) {
    if (!name.starts_with("grad.")) continue;
    const Tensor expected = file.get(name);
    const Tensor gradient = parameters.at(name.substr(5)).grad();
    report.by_norm(name, gradient.view(expected.sizes()), expected, kRounded);
  }
}

}  // namespace sigma::golden
