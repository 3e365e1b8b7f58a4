// Bottlenecks of tokenizers: kl and vq, with gradients.
#include <torch/autograd.h>
#include <torch/types.h>

#include "sigma/tokenizer/bottleneck.h"
#include "sigma/tokenizer/vector_quantizer.h"
#include "tests/golden_runners/golden.h"

namespace sigma::golden {
namespace {

using torch::Tensor;

constexpr double kBound = 1e-12;        // outputs and gradients: float64 throughout
constexpr double kKlLossWeight = 1e-3;  // of the kl in the loss that is differentiated (the note)

void scalar(Report& report, const std::string& what, const Tensor& actual, const Tensor& expected) {
  report.relative(what, actual.reshape({1}), expected.reshape({1}), kBound);
}

Tensor sum_of(const Losses& losses, Tensor total) {
  for (const auto& [name, loss] : losses) total = total + loss;
  return total;
}

}  // namespace

void run_kl(const GoldenFile& file, Report& report) {
  const Tensor e = file.get("input.e").requires_grad_();
  const Gaussian gaussian = split_gaussian(e);
  const Tensor latents = sample_gaussian(gaussian, file.get("input.noise"));
  report.relative("latents", latents, file.get("output.latents"), kBound);
  report.relative("kl_per_sample", gaussian_kl(gaussian).flatten(1).sum(1),
                  file.get("output.kl_per_sample"), kBound);
  const auto coded_by = [&](const std::string& reduction) {
    const BottleneckConfig config{.kind = "kl",
                                  .dim = whole(file.options(), "dim", 0),
                                  .kl_weight = kKlLossWeight,
                                  .kl_reduction = reduction};
    return make_bottleneck(config)->forward(e, {});
  };
  const Coded coded = coded_by("sum");
  report.relative("latents_eval", coded.latents, file.get("output.latents_eval"), kBound);
  scalar(report, "kl_sum", coded.losses.at("kl"),
         kKlLossWeight * file.get("output.loss.kl_sum_unweighted"));
  scalar(report, "kl_mean", coded_by("mean").losses.at("kl"),
         kKlLossWeight * file.get("output.loss.kl_mean_unweighted"));
  sum_of(coded.losses, (latents * file.get("upstream.latents")).sum()).backward();
  report.relative("grad.e", e.grad(), file.get("grad.e"), kBound);
}

void run_vq(const GoldenFile& file, Report& report) {
  const Json& options = file.options();
  const BottleneckConfig config{
      .kind = "vq",
      .dim = whole(options, "dim", 0),
      .norm = text(options, "norm", "none"),
      .codes = whole(options, "codes", 0),
      .commit = number(options, "commit", 0.25),
      .codebook_weight = number(options, "codebook_weight", 1),
      .entropy = number(options, "entropy", 0),
      .entropy_temperature = number(options, "entropy_temperature", 0.01)};
  const auto bottleneck = make_bottleneck(config);
  bottleneck->to(device(), torch::kDouble);
  Tensor codebook = bottleneck->named_parameters()["codebook"];
  {
    const torch::NoGradGuard no_grad;
    codebook.copy_(file.get("weight.embedding.weight"));
  }
  const Tensor e = file.get("input.e").requires_grad_();
  Context context;
  context.training = context.record = true;
  const Coded coded = bottleneck->forward(e, context);
  report.exact("indices", coded.indices, file.get("output.indices"));
  report.relative("latents", coded.latents, file.get("output.latents"), kBound);
  report.relative("codes", bottleneck->codes(coded.indices), file.get("output.latents"), kBound);
  for (const std::string name : {"codebook", "commit", "entropy"}) {
    const auto loss = coded.losses.find("vq." + name);
    scalar(report, name,
           loss == coded.losses.end() ? torch::zeros({1}, torch::kDouble) : loss->second,
           file.get("output.loss." + name));
  }
  scalar(report, "usage", coded.statistics.at("vq.usage"), file.get("output.usage"));
  scalar(report, "perplexity", coded.statistics.at("vq.perplexity"), file.get("output.perplexity"));
  sum_of(coded.losses, (coded.latents * file.get("upstream.latents")).sum()).backward();
  report.relative("grad.e", e.grad(), file.get("grad.e"), kBound);
  report.relative("grad.codebook", codebook.grad(), file.get("grad.embedding.weight"), kBound);
}

}  // namespace sigma::golden
