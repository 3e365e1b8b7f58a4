#include "sigma/metrics/linear_probe.h"

#include <torch/optim/lbfgs.h>
#include <torch/types.h>

#include "sigma/base/error.h"
#include "sigma/metrics/frechet.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr double kStdFloor = 1e-6;
constexpr double kWeightDecay = 1e-4;
constexpr int64_t kIterations = 150;
constexpr int64_t kHistory = 10;
constexpr int64_t kBatch = 500;

Tensor checked_features(const Tensor& features, const char* what) {
  SIGMA_CHECK(kUsage, features.dim() == 2 && features.size(1) >= 1 && features.is_floating_point(),
              "{}: expected floating [n,D], got {} [{}]", what,
              torch::toString(features.scalar_type()), fmt::join(features.sizes(), ","));
  Tensor x = features.detach().to(torch::kFloat);
  SIGMA_CHECK(kNonFinite, torch::isfinite(x).all().item<bool>(),
              "{}: expected finite values, got NaN or Inf", what);
  return x;
}

void check_labels(const LabelledFeatures& set, int64_t num_classes, int64_t least,
                  const char* what) {
  const int64_t rows = set.features.size(0);
  SIGMA_CHECK(kUsage, rows >= least, "{}: expected at least {} rows, got {}", what, least, rows);
  SIGMA_CHECK(kUsage,
              set.labels.dim() == 1 && set.labels.size(0) == rows &&
                  set.labels.scalar_type() == torch::kLong,
              "{}: expected labels int64 [{}], got {} [{}]", what, rows,
              torch::toString(set.labels.scalar_type()), fmt::join(set.labels.sizes(), ","));
  const auto low = set.labels.min().item<int64_t>();
  const auto high = set.labels.max().item<int64_t>();
  SIGMA_CHECK(kUsage, low >= 0 && high < num_classes, "{}: expected labels in 0..{}, got {}", what,
              num_classes - 1, low < 0 ? low : high);
}

struct Classifier {
  Tensor weight;  // [classes,D]: its gradient is then the fast one of the two skinny products
  Tensor bias;    // [classes]
  Tensor logits(const Tensor& z) const { return torch::linear(z, weight, bias); }
};

Classifier fit(const Tensor& z, const Tensor& labels, int64_t num_classes) {
  const auto options = z.options().requires_grad(true);
  Classifier classifier{torch::zeros({num_classes, z.size(1)}, options),
                        torch::zeros({num_classes}, options)};
  torch::optim::LBFGS optimizer({classifier.weight, classifier.bias},
                                torch::optim::LBFGSOptions()
                                    .max_iter(kIterations)
                                    .history_size(kHistory)
                                    .line_search_fn("strong_wolfe"));
  optimizer.step([&] {
    optimizer.zero_grad();
    const Tensor loss = torch::cross_entropy_loss(classifier.logits(z), labels) +
                        kWeightDecay * classifier.weight.square().sum();
    loss.backward();
    return loss;
  });
  return classifier;
}

}  // namespace

double linear_probe_accuracy(const LabelledFeatures& train, const LabelledFeatures& test,
                             int64_t num_classes) {
  SIGMA_CHECK(kUsage, num_classes >= 2, "linear probe: expected at least 2 classes, got {}",
              num_classes);
  const Tensor x = checked_features(train.features, "probe training features");
  const Tensor x_test = checked_features(test.features, "probe test features");
  SIGMA_CHECK(kUsage, x.size(1) == x_test.size(1),
              "linear probe: expected equal widths, got {} and {}", x.size(1), x_test.size(1));
  check_labels(train, num_classes, num_classes, "probe training set");
  check_labels(test, num_classes, 1, "probe test set");

  const Tensor mean = x.mean({0}, /*keepdim=*/false, torch::kDouble).to(torch::kFloat);
  const Tensor centred = x - mean;
  const Tensor scale =
      centred.square().mean({0}, /*keepdim=*/false, torch::kDouble).sqrt() + kStdFloor;
  const Tensor divisor = scale.to(torch::kFloat);
  const Classifier classifier = fit(centred / divisor, train.labels, num_classes);

  const torch::NoGradGuard no_grad;
  const Tensor guesses = classifier.logits((x_test - mean) / divisor).argmax(1);
  return guesses.eq(test.labels).to(torch::kDouble).mean().item<double>();
}

Pca pca_features(const Tensor& train, int64_t k) {
  const FeatureStatistics statistics = feature_statistics(train);
  const int64_t width = train.size(1);
  SIGMA_CHECK(kUsage, k >= 1 && k <= width, "PCA: expected k in 1..{}, got {}", width, k);
  const auto [values, vectors] = torch::linalg_eigh(statistics.covariance);  // rising
  const Tensor first = vectors.narrow(1, width - k, k).flip(1);
  const Tensor largest = first.gather(0, first.abs().argmax(0, /*keepdim=*/true));
  return {.mean = statistics.mean, .components = first * largest.sign()};
}

Tensor Pca::encode(const Tensor& x) const {
  SIGMA_CHECK(kUsage, x.dim() == 2 && x.size(1) == mean.size(0), "PCA: expected [n,{}], got [{}]",
              mean.size(0), fmt::join(x.sizes(), ","));
  return torch::matmul(x.detach().to(torch::kDouble) - mean, components).to(torch::kFloat);
}

Tensor Pca::decode(const Tensor& codes) const {
  SIGMA_CHECK(kUsage, codes.dim() == 2 && codes.size(1) <= components.size(1),
              "PCA: expected at most {} codes a row, got [{}]", components.size(1),
              fmt::join(codes.sizes(), ","));
  const Tensor first = components.narrow(1, 0, codes.size(1));
  return (torch::matmul(codes.to(torch::kDouble), first.t()) + mean).to(torch::kFloat);
}

ImageQuality pca_quality(const Pca& pca, const Tensor& images, int64_t k) {
  SIGMA_CHECK(kUsage, k >= 1 && k <= pca.components.size(1), "PCA: expected k in 1..{}, got {}",
              pca.components.size(1), k);
  ImageQuality quality;
  for (const Tensor& batch : images.split(kBatch)) {
    const Tensor codes = pca.encode(batch.flatten(1)).narrow(1, 0, k);
    quality.add(batch, pca.decode(codes).view(batch.sizes()));
  }
  return quality;
}

}  // namespace sigma
