#include "sigma/tokenizer/bottleneck.h"

#include <torch/types.h>

#include "sigma/base/error.h"
#include "sigma/nn/linear.h"
#include "sigma/tokenizer/vector_quantizer.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr double kLengthFloor = 1e-12;
constexpr double kStdEps = 1e-6;
constexpr double kLogVarianceLow = -30;
constexpr double kLogVarianceHigh = 20;
constexpr uint32_t kNoiseSite = 256;

class PlainBottleneck : public Bottleneck {
 public:
  explicit PlainBottleneck(const BottleneckConfig& config) : config_(config) {}
  int64_t in_channels() const override { return config_.dim; }
  Coded forward(const Tensor& e, const Context&) override {
    return {.latents = normalise_latents(at_least_float(e), config_.norm),
            .indices = {},
            .losses = {},
            .statistics = {}};
  }

 private:
  BottleneckConfig config_;
};

class KlBottleneck : public Bottleneck {
 public:
  explicit KlBottleneck(const BottleneckConfig& config) : config_(config) {}
  int64_t in_channels() const override { return 2 * config_.dim; }

  Coded forward(const Tensor& e, const Context& context) override {
    const Gaussian gaussian = split_gaussian(at_least_float(e));
    Coded coded{.latents = gaussian.mean, .indices = {}, .losses = {}, .statistics = {}};
    if (context.training) {
      const Tensor noise = torch::empty(gaussian.mean.sizes(), gaussian.mean.options());
      fill_normal(noise, context.rng, Purpose::kNoise, kNoiseSite, context.samples);
      coded.latents = sample_gaussian(gaussian, noise);
    }
    if (torch::GradMode::is_enabled() && config_.kl_weight > 0) {
      const Tensor kl = gaussian_kl(gaussian);
      coded.losses["kl"] =
          config_.kl_weight *
          (config_.kl_reduction == "sum" ? kl.flatten(1).sum(1).mean() : kl.mean());
    }
    return coded;
  }

 private:
  BottleneckConfig config_;
};

}  // namespace

void BottleneckConfig::visit(ConfigVisitor& v) {
  v.choice("kind", kind, {"ae", "kl", "vq"}, "what stands between encoder and decoder");
  v.field("dim", dim, in(1, 1024), "channels of a latent token");
  v.choice("norm", norm, {"none", "l2", "layer"},
           "of a latent token's channels; kl has none, vq none or l2");
  if (v.when(kind, "kl")) {
    v.field("kl_weight", kl_weight, in(0, 1e3), "weight of the KL loss");
    v.choice("kl_reduction", kl_reduction, {"sum", "mean"},
             "KL summed over a sample's latents, or the mean over all elements");
  }
  if (v.when(kind, "vq")) {
    v.field("codes", codes, in(2, 1 << 20), "codes of the codebook");
    v.field("commit", commit, in(0, 10), "weight of the loss that pulls latents to their codes");
    v.field("codebook_weight", codebook_weight, in(0, 10),
            "weight of the loss that pulls codes to their latents");
    v.field("entropy", entropy, in(0, 10),
            "weight of the loss that makes choices sure and the codes equally used");
    v.field("entropy_temperature", entropy_temperature, above(0, 10),
            "of the softmax over distances in the entropy loss");
    v.choice("restart", restart, {"none", "threshold"}, "what becomes of codes nobody uses");
    if (v.when(restart, "threshold")) {
      v.field("restart_below", restart_below, in(0, 1),
              "a code restarts below this share of the mean use");
      v.field("restart_after", restart_after, in(1, 1e6), "least steps between two restarts");
    }
    v.field("usage_window", usage_window, in(1, 1 << 24),
            "latent tokens that usage and perplexity are measured on");
  }
}

Tensor Bottleneck::codes(const Tensor&) const {
  fail(ErrorKind::kUsage, "bottleneck.kind: expected vq where indices become latents");
}

std::shared_ptr<Bottleneck> make_bottleneck(const BottleneckConfig& config) {
  SIGMA_CHECK(kUsage, config.norm != "layer" || config.dim > 1,
              "bottleneck.norm: layer needs a dim of at least 2, got {}", config.dim);
  if (config.kind == "kl") {
    SIGMA_CHECK(kUsage, config.norm == "none", "bottleneck.norm: kl expected none, got {}",
                config.norm);
    return std::make_shared<KlBottleneck>(config);
  }
  if (config.kind == "vq") {
    SIGMA_CHECK(kUsage, config.norm != "layer", "bottleneck.norm: vq expected none or l2, got {}",
                config.norm);
    return std::make_shared<VectorQuantizer>(config);
  }
  return std::make_shared<PlainBottleneck>(config);
}

Tensor normalise_latents(const Tensor& e, const std::string& norm) {
  if (norm == "l2")
    return e / torch::linalg_vector_norm(e, 2, -1, /*keepdim=*/true).clamp_min(kLengthFloor);
  if (norm == "layer")
    return (e - e.mean(-1, /*keepdim=*/true)) /
           (e.std(-1, /*unbiased=*/true, /*keepdim=*/true) + kStdEps);
  return e;
}

Gaussian split_gaussian(const Tensor& e) {
  const auto halves = e.chunk(2, -1);
  return {.mean = halves[0], .log_variance = halves[1].clamp(kLogVarianceLow, kLogVarianceHigh)};
}

Tensor sample_gaussian(const Gaussian& gaussian, const Tensor& noise) {
  return gaussian.mean + (0.5 * gaussian.log_variance).exp() * noise;
}

Tensor gaussian_kl(const Gaussian& gaussian) {
  const Tensor& lv = gaussian.log_variance;
  return 0.5 * (gaussian.mean.square() + lv.exp() - 1 - lv);
}

}  // namespace sigma
