#include "sigma/metrics/image_quality.h"

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

Tensor noise(std::vector<int64_t> sizes, uint64_t seed) {
  const Tensor out = torch::empty(sizes, torch::kFloat);
  fill_uniform_keyed(out, seed, random_stream(Purpose::kEval, 0), 0);
  return out;
}

TEST(ImageQuality, ByHand) {
  // Errors .1 and .01 everywhere: 20 and 40 dB; the mean squared error is .00505.
  const Tensor x = torch::full({2, 1, 12, 13}, 0.5, torch::kDouble);
  Tensor y = x.clone();
  y[0] += 0.1;
  y[1] -= 0.01;
  ImageQuality quality;
  quality.add(x, y);
  EXPECT_EQ(quality.count(), 2);
  EXPECT_NEAR(quality.psnr_mean_image(), 30, 1e-12);
  EXPECT_NEAR(quality.psnr_of_mean(), -10 * std::log10(0.00505), 1e-12);
  // Without variance the second factor is C2 / C2.
  const auto flat = [](double u, double v) { return (2 * u * v + 1e-4) / (u * u + v * v + 1e-4); };
  EXPECT_NEAR(quality.ssim().value(), (flat(0.5, 0.6) + flat(0.5, 0.49)) / 2, 1e-12);
}

TEST(ImageQuality, SsimIsItsDefinitionAtOnePlace) {
  // An image as small as the window has one place: weighted sums over all of it.
  const Tensor x = noise({1, 1, 11, 11}, 1).to(torch::kDouble);
  const Tensor y = noise({1, 1, 11, 11}, 2).to(torch::kDouble);
  const Tensor line = torch::exp(-(torch::arange(11, torch::kDouble) - 5).square() / 4.5);
  Tensor w = torch::outer(line, line);
  w /= w.sum();
  const auto mean = [&](const Tensor& t) { return (w * t).sum().item<double>(); };
  const double u = mean(x);
  const double v = mean(y);
  const double spread = mean((x - u).square()) + mean((y - v).square());
  const double covariance = mean((x - u) * (y - v));
  const double expected =
      (2 * u * v + 1e-4) * (2 * covariance + 9e-4) / ((u * u + v * v + 1e-4) * (spread + 9e-4));
  EXPECT_NEAR(ssim_gauss11(x, y).item<double>(), expected, 1e-13);
}

TEST(ImageQuality, IdenticalImagesReachTheCeiling) {
  const Tensor x = noise({1, 3, 17, 11}, 1);
  ImageQuality quality;
  quality.add(x, x);
  EXPECT_EQ(quality.psnr_mean_image(), 100);
  EXPECT_EQ(quality.psnr_of_mean(), 100);
  EXPECT_EQ(quality.ssim().value(), 1);
}

TEST(ImageQuality, ClampsToTheUnitRange) {
  const Tensor x = torch::ones({1, 1, 11, 11});
  EXPECT_EQ(mean_squared_errors(x, 3 * x).item<double>(), 0);
  EXPECT_EQ(mean_squared_errors(x - 1, x - 5).item<double>(), 0);
}

TEST(ImageQuality, AnyBatchSize) {
  const Tensor x = noise({7, 2, 13, 19}, 1);
  const Tensor y = noise({7, 2, 13, 19}, 2);
  ImageQuality whole;
  whole.add(x, y);
  for (const int64_t size : {1, 3}) {
    ImageQuality parts;
    for (int64_t i = 0; i < 7; i += size)
      parts.add(x.slice(0, i, i + size), y.slice(0, i, i + size));
    EXPECT_EQ(parts.count(), 7);
    EXPECT_NEAR(parts.psnr_mean_image(), whole.psnr_mean_image(), 1e-13);
    EXPECT_NEAR(parts.psnr_of_mean(), whole.psnr_of_mean(), 1e-13);
    EXPECT_NEAR(parts.ssim().value(), whole.ssim().value(), 1e-14);
  }
}

TEST(ImageQuality, SmallImagesHavePsnrOnly) {
  const Tensor x = noise({1, 1, 10, 40}, 1);
  expect_error(ErrorKind::kUsage, "10x40", [&] { ssim_gauss11(x, x); });
  const Tensor large = noise({1, 1, 11, 40}, 1);
  ImageQuality quality;
  quality.add(x, 1 - x);
  quality.add(large, large);
  EXPECT_FALSE(quality.ssim().has_value());  // not the mean over the images that have one
  EXPECT_EQ(quality.count(), 2);
  EXPECT_NEAR(quality.psnr_mean_image(),
              (psnr(mean_squared_errors(x, 1 - x).item<double>()) + 100) / 2, 1e-12);
}

TEST(ImageQuality, Refuses) {
  const Tensor x = noise({2, 1, 12, 12}, 1);
  ImageQuality quality;
  expect_error(ErrorKind::kUsage, "none", [&] { quality.psnr_of_mean(); });
  expect_error(ErrorKind::kUsage, "none", [&] { quality.ssim(); });
  expect_error(ErrorKind::kUsage, "[1,1,12,12]", [&] { quality.add(x, x.narrow(0, 0, 1)); });
  expect_error(ErrorKind::kUsage, "[1,12,12]", [&] { quality.add(x[0], x[0]); });
  const Tensor bytes = x.to(torch::kByte);
  expect_error(ErrorKind::kUsage, "Byte", [&] { quality.add(bytes, bytes); });
  Tensor bad = x.clone();
  bad[1][0][3][4] = NAN;
  expect_error(ErrorKind::kNonFinite, "NaN", [&] { quality.add(x, bad); });
  EXPECT_EQ(quality.count(), 0);
}

}  // namespace
}  // namespace sigma
