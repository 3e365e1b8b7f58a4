#include "sigma/cli/tokenizer_metrics.h"

#include <algorithm>

#include "sigma/base/error.h"

namespace sigma {
namespace {

constexpr const char* kExtractor = "fd_fashion_cnn";
constexpr const char* kReconstructed = "rfd_fashion_cnn";
constexpr int64_t kSmallestSsimSide = 11;

bool by_default(const std::string& name, const RunConfig& config) {
  if (name == "prefixes") return config.tokenizer.nesting.kind == "nested";
  if (name.starts_with("code_")) return config.tokenizer.bottleneck.kind == "vq";
  if (name == kReconstructed) return config.data.kind == "fashion";
  return name != "linear_probe_pixels";  // of a data set it is always the same, and slow
}

// Why a metric cannot be measured; empty if it can.
std::string obstacle(const std::string& name, const RunConfig& config,
                     const TokenizerImages& images) {
  const TokenizerConfig& tokenizer = config.tokenizer;
  if (name.starts_with("code_"))
    return tokenizer.bottleneck.kind == "vq" ? "" : "the tokenizer has no codebook";
  if (name.starts_with("linear_probe")) {
    if (!has_test_split(config.data)) return "the data has no test split";
    if (images.classes < 2) return "the data has no labels";
    if (name == "linear_probe") return "";
    if (images.numbers() > kMaxPcaNumbers)
      return fmt::format("an image has more than {} numbers", kMaxPcaNumbers);
    if (name == "linear_probe_pca" && images.latent_numbers > images.numbers())
      return "the latents have more numbers than the image";
    return "";
  }
  if (tokenizer.pixel.target != "pixel")
    return fmt::format("the tokenizer predicts {}, not images", tokenizer.pixel.target);
  if (name == "ssim_gauss11" && std::min(images.shape[1], images.shape[2]) < kSmallestSsimSide)
    return fmt::format("a side is below {} pixels", kSmallestSsimSide);
  if (name == "prefixes" && tokenizer.nesting.kind != "nested")
    return "the tokenizer has no nested prefixes";
  return "";
}

}  // namespace

std::vector<std::string> tokenizer_metrics() {
  return {"psnr_of_mean", "psnr_mean_image", "ssim_gauss11",     kReconstructed,
          kExtractor,     "linear_probe",    "linear_probe_pca", "linear_probe_pixels",
          "code_usage",   "code_perplexity", "prefixes"};
}

MetricChoice choose_tokenizer_metrics(const RunConfig& config, const TokenizerImages& images,
                                      std::vector<std::string> asked) {
  // The distance is that of reconstructions, whichever way it is asked for.
  std::replace(asked.begin(), asked.end(), std::string(kExtractor), std::string(kReconstructed));
  MetricChoice choice;
  for (const std::string& name : tokenizer_metrics()) {
    if (name == kExtractor) continue;
    const bool named = std::find(asked.begin(), asked.end(), name) != asked.end();
    if (!(asked.empty() ? by_default(name, config) : named)) continue;
    const std::string reason = obstacle(name, config, images);
    SIGMA_CHECK(kUsage, reason.empty() || !named, "--metrics {}: {}", name, reason);
    if (reason.empty()) choice.wanted.insert(name);
    else choice.obstacles[name] = reason;
  }
  return choice;
}

}  // namespace sigma
