// optimizers (AdamW) and ema (constant), step by step on stored gradients and parameters.
#include <fmt/format.h>
#include <torch/types.h>

#include "sigma/train/ema.h"
#include "sigma/train/optimizer.h"
#include "tests/golden_runners/golden.h"

namespace sigma::golden {
namespace {

using torch::Tensor;

void run_optimizer(const GoldenFile& file, const std::string& o, Report& report) {
  const Json options = file.options().value(o, Json::object());
  require(options, "kind", {"adamw"});
  require(options, "amsgrad", {false});
  OptimizerConfig config;
  config.lr = number(options, "lr", 1e-3);
  const Json betas = options.value("betas", Json({0.9, 0.999}));
  config.beta1 = betas[0].get<double>();
  config.beta2 = betas[1].get<double>();
  config.eps = number(options, "eps", 1e-8);
  config.weight_decay = number(options, "weight_decay", 0);

  const Tensor grads = file.get("grads");
  const auto run = [&](torch::ScalarType dtype, NamedTensors* state) {
    Tensor p = file.get("p0").to(dtype).requires_grad_();
    AdamW optimizer({{"p", p}}, config);
    std::vector<Tensor> course;
    for (int64_t i = 0; i < grads.size(0); ++i) {
      p.mutable_grad() = grads[i].to(dtype);
      optimizer.step(config.lr, torch::zeros({}, grads.options().dtype(torch::kFloat)));
      course.push_back(p.detach().clone());
    }
    if (state) *state = optimizer.state();
    return torch::stack(course);
  };
  NamedTensors state;
  // Twenty steps of a few roundings each, relative to the largest parameter.
  report.relative(o + ".p", run(torch::kDouble, &state), file.get(o + ".p"), 1e-12);
  for (const auto& [name, value] : state) {
    if (name == "exp_avg.p" && file.has(o + ".m"))
      report.relative(o + ".m", value, file.get(o + ".m"), 1e-12);
    if (name == "exp_avg_sq.p" && file.has(o + ".v"))
      report.relative(o + ".v", value, file.get(o + ".v"), 1e-12);
  }
  if (file.has(o + ".p_float32")) {
    // Against the float64 course: a step is lr times a quotient with a few roundings; they add up
    // over the steps.
    const auto steps = static_cast<double>(grads.size(0));
    const double scale = file.get(o + ".p").abs().max().item<double>();
    report.absolute(o + ".p float32", run(torch::kFloat, nullptr), file.get(o + ".p"),
                    kEps32 * steps * (scale + 8 * config.lr));
  }
}

struct Holder : torch::nn::Module {
  explicit Holder(const Tensor& p) : p(register_parameter("p", p)) {}
  Tensor p;
};

void run_constant(const GoldenFile& file, const std::string& name, Report& report) {
  const Json options = file.options().value(name, Json::object());
  require(options, "start", {"p[0]"});
  EmaConfig config;
  config.decay = number(options, "decay", 0.999);
  config.warmup = flag(options, "warmup", false);
  const Tensor course = file.get("p");
  const auto module = std::make_shared<Holder>(course[0].clone());
  Ema ema(*module, config);
  std::vector<Tensor> averages;
  for (int64_t i = 0; i < course.size(0); ++i) {
    {
      const torch::NoGradGuard no_grad;
      module->p.copy_(course[i]);
    }
    ema.update(i, torch::zeros({}, course.options()));
    averages.push_back(ema.state().front().second.detach().clone());
  }
  report.relative(name, torch::stack(averages), file.get(name), 1e-12);
}

}  // namespace

void run_optimizers(const GoldenFile& file, Report& report) {
  for (const std::string& o : file.prefixes("p")) {
    sub_case(report, [&] { run_optimizer(file, o, report); });
  }
}

void run_ema(const GoldenFile& file, Report& report) {
  for (const std::string& name : file.names()) {
    if (name.starts_with("constant")) sub_case(report, [&] { run_constant(file, name, report); });
  }
  if (file.has("ema_power") || file.has("gamma") || file.has("beta")) report.skip("ema power");
}

}  // namespace sigma::golden
