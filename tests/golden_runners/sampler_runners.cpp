// imm-samplers: pushforward and restart on the toy network.
#include <torch/types.h>

#include <regex>

#include "sigma/generator/sampler.h"
#include "tests/generator/toy_network.h"
#include "tests/golden_runners/setup.h"

namespace sigma::golden {
namespace {

using torch::Tensor;

constexpr double kBound = 1e-12;

/// The file's description names the null label: "num_classes = 4".
int64_t null_label(const GoldenFile& file) {
  const int64_t given = whole(file.options(), "num_classes", 0);
  const std::string network =
      file.meta("network").is_string() ? file.meta("network").get<std::string>() : "";
  std::smatch match;
  return given == 0 && std::regex_search(network, match, std::regex("num_classes = (\\d+)"))
             ? std::stoll(match[1])
             : given;
}

void run_case(const GoldenFile& file, const std::string& r, Report& report) {
  const Json options = file.options().value(r, Json::object());
  require(options, "kind", {"pushforward", "restart"});
  require(options, "schedule", {"uniform", "edm", "explicit"});
  SamplerConfig config;
  config.kind = text(options, "kind", "pushforward");
  config.steps = whole(options, "steps", 1);
  config.schedule = text(options, "schedule", "uniform");
  config.rho = number(options, "rho", 7);
  if (options.contains("mid_eta")) config.mid_eta = options["mid_eta"].get<std::vector<double>>();
  config.guidance.scale = number(options, "guidance_scale", 1);
  const Preconditioner f = make_preconditioner(options);
  const Path& path = f.path();

  const Tensor times = file.get(r + ".times");
  report.relative(r + ".times", torch::tensor(sampler_times(config, path), torch::kDouble), times,
                  kBound);

  ToyNetwork net(null_label(file));
  const Tensor latents = file.get("latents");
  const Tensor fresh = file.has(r + ".fresh_eps") ? file.get(r + ".fresh_eps") : Tensor();
  int64_t used = 0;
  std::vector<Tensor> jumps;
  Context context;
  context.samples = torch::arange(latents.size(0));
  const Tensor labels = file.has("labels") ? file.get("labels") : Tensor();
  sample(
      Imm({}, f), path, net, latents, {labels}, config, context,
      [&](int64_t) { return fresh[used++]; }, [&](const Tensor& x) { jumps.push_back(x.clone()); });
  report.relative(r + ".x", torch::stack(jumps), file.get(r + ".x"), kBound);
  if (file.has(r + ".G")) {
    std::vector<Tensor> outputs;
    for (const auto& call : net.calls) outputs.push_back(call.G);
    report.relative(r + ".G", torch::stack(outputs), file.get(r + ".G"), kBound);
  }
  report.is_true(r + ": fresh noise used up", !fresh.defined() || used == fresh.size(0));
  report.is_true(
      r + ": number of network calls",
      static_cast<int64_t>(net.calls.size()) == whole(options, "network_calls", config.steps));
}

}  // namespace

void run_imm_samplers(const GoldenFile& file, Report& report) {
  for (const std::string& r : file.prefixes("times")) {
    sub_case(report, [&] { run_case(file, r, report); });
  }
}

}  // namespace sigma::golden
