// metrics: Frechet distance and energy distance.
#include <torch/types.h>

#include "sigma/metrics/frechet.h"
#include "tests/golden_runners/golden.h"

namespace sigma::golden {
namespace {

using torch::Tensor;

/// How far eigenvalues that are wrong by eps times the largest move the sum of their roots: much
/// where they nearly vanish.
double frechet_bound(const FeatureStatistics& a, const FeatureStatistics& b, double distance) {
  const auto [values, vectors] = at::linalg_eigh(a.covariance);
  const Tensor root = vectors.matmul(values.clamp_min(0).sqrt().unsqueeze(1) * vectors.t());
  const Tensor product = root.matmul(b.covariance).matmul(root);
  const Tensor eigenvalues = at::linalg_eigvalsh((product + product.t()) / 2).clamp_min(0);
  const double largest = eigenvalues.max().item<double>();
  const double wrong = 8 * kEps64 * static_cast<double>(a.mean.size(0)) * largest;
  const Tensor moved = torch::minimum(torch::full_like(eigenvalues, std::sqrt(wrong)),
                                      wrong / (2 * eigenvalues.sqrt()));
  const double trace =
      (a.covariance.trace() + b.covariance.trace() + (a.mean - b.mean).square().sum())
          .item<double>();
  // Measured at low rank: 2e-7 of the distance (objectives.md 11); the worst case is far above
  // that.
  return std::min(2 * moved.sum().item<double>(), 2e-7 * distance) + 1e-13 * trace;
}

}  // namespace

void run_metrics(const GoldenFile& file, Report& report) {
  for (const std::string& m : file.prefixes("reference")) {
    const auto has = [&](const char* name) { return file.has(m + "." + name); };
    const auto get = [&](const char* name) { return file.get(m + "." + name); };
    const auto scalar = [](double value) { return torch::full({1}, value, torch::kDouble); };
    const Tensor reference = get("reference");
    const Tensor generated = get("generated");
    const FeatureStatistics a = feature_statistics(reference);
    const FeatureStatistics b = feature_statistics(generated);
    report.relative(m + ".mu_reference", a.mean, get("mu_reference"), 1e-12);
    report.relative(m + ".mu_generated", b.mean, get("mu_generated"), 1e-12);
    report.relative(m + ".sigma_reference", a.covariance, get("sigma_reference"), 1e-12);
    report.relative(m + ".sigma_generated", b.covariance, get("sigma_generated"), 1e-12);
    const char* target = has("frechet_exact") ? "frechet_exact" : "frechet";
    if (has(target))
      report.absolute(m + "." + target, scalar(frechet_distance(a, b)), get(target).reshape({1}),
                      frechet_bound(a, b, get(target).abs().max().item<double>()));
    if (has("energy")) {
      const double far = torch::cat({reference, generated}).norm(2, 1).max().item<double>();
      report.absolute(m + ".energy", scalar(energy_distance(reference, generated)),
                      get("energy").reshape({1}), 4e-13 * far);
    }
    if (has("kid_mean")) report.skip("metric kid");
    if (has("precision")) report.skip("metric precision and recall");
  }
}

}  // namespace sigma::golden
