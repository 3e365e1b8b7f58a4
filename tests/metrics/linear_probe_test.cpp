#include "sigma/metrics/linear_probe.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>

#include "sigma/base/error.h"
#include "sigma/base/random.h"
#include "tests/testing/errors.h"

namespace sigma {
namespace {

using testing::expect_error;
using torch::Tensor;

Tensor normal(std::vector<int64_t> sizes, uint64_t seed) {
  const Tensor out = torch::empty(sizes, torch::kFloat);
  fill_normal_keyed(out, seed, random_stream(Purpose::kEval, 0), 0);
  return out;
}

/// n rows of `classes` unit Gaussians in 8 dimensions, class c at `distance` along axis c.
LabelledFeatures blobs(int64_t n, int64_t classes, double distance, uint64_t seed) {
  const Tensor labels = torch::arange(n, torch::kLong).remainder(classes);
  return {normal({n, 8}, seed) + distance * torch::one_hot(labels, 8), labels};
}

TEST(LinearProbe, SeparableClasses) {
  EXPECT_EQ(linear_probe_accuracy(blobs(300, 3, 20, 1), blobs(200, 3, 20, 2), 3), 1.0);
}

TEST(LinearProbe, ReachesTheBestPossibleAccuracyWhateverTheScale) {
  // Two Gaussians 2 apart: no rule does better than Phi(1) = .8413. Standard error .0052.
  const double apart = 2 / std::sqrt(2.0);
  const LabelledFeatures train = blobs(4000, 2, apart, 1);
  const LabelledFeatures test = blobs(5000, 2, apart, 2);
  const double accuracy = linear_probe_accuracy(train, test, 2);
  EXPECT_NEAR(accuracy, 0.8413, 4 * 0.0052);
  EXPECT_EQ(accuracy, linear_probe_accuracy(train, test, 2));

  const Tensor scale = torch::logspace(-4, 4, 8);
  const auto moved = [&](const LabelledFeatures& set) {
    return LabelledFeatures{set.features * scale + 3 * scale, set.labels};
  };
  EXPECT_NEAR(linear_probe_accuracy(moved(train), moved(test), 2), accuracy, 0.001);
}

TEST(LinearProbe, UnrelatedLabelsGiveChance) {
  // All classes at one place: a quarter, with a standard error of .0137 over 1000 rows.
  EXPECT_NEAR(linear_probe_accuracy(blobs(2000, 4, 0, 1), blobs(1000, 4, 0, 2), 4), 0.25,
              4 * 0.0137);
}

TEST(LinearProbe, IgnoresAFeatureThatIsConstantInTraining) {
  const LabelledFeatures train = blobs(300, 3, 20, 1);
  const LabelledFeatures test = blobs(200, 3, 20, 2);
  const auto with = [](const LabelledFeatures& set, const Tensor& column) {
    return LabelledFeatures{torch::cat({set.features, column}, 1), set.labels};
  };
  EXPECT_EQ(linear_probe_accuracy(with(train, torch::full({300, 1}, 0.1)),
                                  with(test, normal({200, 1}, 3)), 3),
            1.0);
}

TEST(LinearProbe, Refuses) {
  const LabelledFeatures train = blobs(30, 3, 5, 1);
  const LabelledFeatures test = blobs(9, 3, 5, 2);
  const auto probe = [&](const LabelledFeatures& a, const LabelledFeatures& b, int64_t classes) {
    return [=] { linear_probe_accuracy(a, b, classes); };
  };
  expect_error(ErrorKind::kUsage, "at least 2 classes", probe(train, test, 1));
  expect_error(ErrorKind::kUsage, "at least 3 rows", probe(blobs(2, 2, 5, 1), test, 3));
  expect_error(ErrorKind::kUsage, "at least 1 rows", probe(train, blobs(0, 3, 5, 1), 3));
  expect_error(ErrorKind::kUsage, "training set: expected labels in 0..1, got 2",
               probe(train, test, 2));
  expect_error(ErrorKind::kUsage, "test set: expected labels in 0..2, got -1",
               probe(train, {test.features, test.labels - 1}, 3));
  expect_error(ErrorKind::kUsage, "int64 [9]", probe(train, {test.features, train.labels}, 3));
  expect_error(ErrorKind::kUsage, "int64 [9]",
               probe(train, {test.features, test.labels.to(torch::kInt)}, 3));
  expect_error(ErrorKind::kUsage, "8 and 7",
               probe(train, {test.features.narrow(1, 0, 7), test.labels}, 3));
  expect_error(ErrorKind::kUsage, "[n,D]", probe({train.features[0], train.labels}, test, 3));
  expect_error(ErrorKind::kNonFinite, "NaN",
               probe({train.features / torch::zeros({8}), train.labels}, test, 3));
}

TEST(Pca, ReconstructionIsTheTruncatedSingularValueDecomposition) {
  const Tensor x = torch::matmul(normal({50, 12}, 1), normal({12, 12}, 2)) + 3;
  const Tensor wide = x.to(torch::kDouble);
  const Tensor mean = wide.mean(0);
  const auto [u, s, vt] = torch::linalg_svd(wide - mean, /*full_matrices=*/false);
  const Pca pca = pca_features(x, 12);
  const Tensor codes = pca.encode(x);
  for (const int64_t k : {1, 5, 12}) {
    const Tensor expected =
        torch::matmul(u.narrow(1, 0, k) * s.narrow(0, 0, k), vt.narrow(0, 0, k)) + mean;
    const Tensor actual = pca.decode(codes.narrow(1, 0, k));
    // k codes and the result are rounded to float32.
    const double bound = 1.2e-7 * std::sqrt(k + 1.0) * wide.abs().max().item<double>();
    EXPECT_LE((actual - expected).abs().max().item<double>(), bound) << k;
  }
  const Tensor gram = torch::matmul(pca.components.t(), pca.components);
  EXPECT_LE((gram - torch::eye(12, torch::kDouble)).abs().max().item<double>(), 1e-14);
  const Tensor largest = pca.components.gather(0, pca.components.abs().argmax(0, /*keepdim=*/true));
  EXPECT_TRUE(largest.gt(0).all().item<bool>());
  // Fewer components are the first of more.
  EXPECT_TRUE(pca_features(x, 5).components.equal(pca.components.narrow(1, 0, 5)));
}

TEST(Pca, QualityOfImages) {
  const Tensor images = (0.5 + normal({20, 1, 4, 5}, 1) / 8).clamp(0, 1);
  const Pca pca = pca_features(images.flatten(1), 20);
  double before = 0;
  for (const int64_t k : {1, 4, 10}) {
    const Tensor reconstructed =
        pca.decode(pca.encode(images.flatten(1)).narrow(1, 0, k)).view(images.sizes());
    ImageQuality expected;
    expected.add(images, reconstructed);
    const double actual = pca_quality(pca, images, k).psnr_of_mean();
    EXPECT_NEAR(actual, expected.psnr_of_mean(), 1e-12);
    EXPECT_GT(actual, before);
    before = actual;
  }
  EXPECT_EQ(pca_quality(pca, images, 20).psnr_of_mean(), 100);
}

TEST(Pca, Refuses) {
  const Tensor x = normal({10, 6}, 1);
  const Pca pca = pca_features(x, 4);
  expect_error(ErrorKind::kUsage, "1..6, got 7", [&] { pca_features(x, 7); });
  expect_error(ErrorKind::kUsage, "1..6, got 0", [&] { pca_features(x, 0); });
  expect_error(ErrorKind::kUsage, "at least 2 rows", [&] { pca_features(x.narrow(0, 0, 1), 1); });
  expect_error(ErrorKind::kUsage, "[n,6]", [&] { pca.encode(x.narrow(1, 0, 5)); });
  expect_error(ErrorKind::kUsage, "at most 4", [&] { pca.decode(x); });
  expect_error(ErrorKind::kUsage, "1..4, got 5",
               [&] { pca_quality(pca, x.view({10, 1, 2, 3}), 5); });
}

}  // namespace
}  // namespace sigma
