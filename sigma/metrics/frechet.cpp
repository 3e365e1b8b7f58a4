#include "sigma/metrics/frechet.h"

#include <torch/types.h>

#include "sigma/base/error.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr int64_t kTile = 1024;  // rows of a tile of distances
constexpr int64_t kDirectDistances =
    2;  // cdist without matrix products: |x|^2 + |y|^2 - 2xy cancels

Tensor checked_rows(const Tensor& rows, const char* what) {
  SIGMA_CHECK(kUsage, rows.dim() == 2 && rows.size(1) >= 1, "{}: expected [N,D], got [{}]", what,
              fmt::join(rows.sizes(), ","));
  SIGMA_CHECK(kUsage, rows.size(0) >= 2, "{}: expected at least 2 rows, got {}", what,
              rows.size(0));
  Tensor wide = rows.detach().to(torch::kDouble);
  SIGMA_CHECK(kNonFinite, torch::isfinite(wide).all().item<bool>(),
              "{}: expected finite values, got NaN or Inf", what);
  return wide;
}

Tensor symmetrised(const Tensor& m) { return (m + m.t()) / 2; }

Tensor square_root(const Tensor& covariance) {
  const auto [values, vectors] = torch::linalg_eigh(symmetrised(covariance));
  return torch::matmul(vectors * values.clamp_min(0).sqrt(), vectors.t());
}

double sum_of_distances(const Tensor& x, const Tensor& y) {
  double sum = 0;
  for (const Tensor& a : x.split(kTile)) {
    for (const Tensor& b : y.split(kTile))
      sum += torch::cdist(a, b, 2.0, kDirectDistances).sum().item<double>();
  }
  return sum;
}

}  // namespace

FeatureStatistics feature_statistics(const Tensor& features) {
  const Tensor x = checked_rows(features, "features");
  const Tensor mean = x.mean(0);
  const Tensor centred = x - mean;
  return {mean, torch::matmul(centred.t(), centred) / (x.size(0) - 1), x.size(0)};
}

double frechet_distance(const FeatureStatistics& a, const FeatureStatistics& b) {
  SIGMA_CHECK(kUsage, a.mean.sizes() == b.mean.sizes(),
              "Frechet distance: expected equal widths, got {} and {}", a.mean.numel(),
              b.mean.numel());
  const Tensor root = square_root(a.covariance);
  const Tensor product = torch::matmul(torch::matmul(root, b.covariance), root);
  const Tensor cross = torch::linalg_eigvalsh(symmetrised(product)).clamp_min(0).sqrt().sum();
  const Tensor distance =
      (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross;
  return distance.item<double>();
}

double energy_distance(const Tensor& x, const Tensor& y) {
  const Tensor a = checked_rows(x, "samples");
  const Tensor b = checked_rows(y, "samples");
  SIGMA_CHECK(kUsage, a.size(1) == b.size(1),
              "energy distance: expected equal widths, got {} and {}", a.size(1), b.size(1));
  const auto n = static_cast<double>(a.size(0));
  const auto m = static_cast<double>(b.size(0));
  // A row is at distance 0 from itself, so dividing by n (n - 1) leaves out the diagonal.
  return 2 * sum_of_distances(a, b) / (n * m) - sum_of_distances(a, a) / (n * (n - 1)) -
         sum_of_distances(b, b) / (m * (m - 1));
}

}  // namespace sigma
