#include "sigma/metrics/image_quality.h"

#include <torch/types.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "sigma/base/error.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr double kSmallestError = 1e-10;  // 100 dB
constexpr int64_t kWindow = 11;
constexpr double kWindowStd = 1.5;
constexpr double kC1 = 0.01 * 0.01;
constexpr double kC2 = 0.03 * 0.03;

Tensor checked_images(const Tensor& images) {
  SIGMA_CHECK(kUsage, images.dim() == 4 && images.numel() > 0 && images.is_floating_point(),
              "image quality: expected floating [B,C,H,W], got {} [{}]",
              torch::toString(images.scalar_type()), fmt::join(images.sizes(), ","));
  Tensor wide = images.detach().to(torch::kDouble);
  SIGMA_CHECK(kNonFinite, torch::isfinite(wide).all().item<bool>(),
              "image quality: expected finite values, got NaN or Inf");
  return wide.clamp(0, 1);
}

std::pair<Tensor, Tensor> checked_pair(const Tensor& x, const Tensor& y) {
  SIGMA_CHECK(kUsage, x.sizes() == y.sizes(),
              "image quality: expected pairs of one shape, got [{}] and [{}]",
              fmt::join(x.sizes(), ","), fmt::join(y.sizes(), ","));
  return {checked_images(x), checked_images(y)};
}

bool window_fits(const Tensor& images) {
  return std::min(images.size(2), images.size(3)) >= kWindow;
}

std::array<double, kWindow> window_weights() {
  std::array<double, kWindow> weights{};
  double sum = 0;
  for (int64_t i = 0; i < kWindow; ++i) {
    const double distance = static_cast<double>(i - kWindow / 2) / kWindowStd;
    sum += weights[i] = std::exp(-distance * distance / 2);
  }
  for (double& w : weights) w /= sum;
  return weights;
}

/// Means under the window at the places where it fits: along rows, then along columns.
Tensor window_mean(Tensor x) {
  static const std::array<double, kWindow> kWeights = window_weights();
  for (const int64_t axis : {2, 3}) {
    const int64_t places = x.size(axis) - kWindow + 1;
    Tensor sum = x.narrow(axis, 0, places) * kWeights[0];
    for (int64_t i = 1; i < kWindow; ++i) sum.add_(x.narrow(axis, i, places), kWeights[i]);
    x = sum;
  }
  return x;
}

Tensor errors_of(const Tensor& x, const Tensor& y) {
  return (x - y).square().flatten(1).mean(1).cpu();
}

Tensor ssim_of(const Tensor& x, const Tensor& y) {
  const Tensor u = window_mean(x);
  const Tensor v = window_mean(y);
  const Tensor uu = u * u;
  const Tensor vv = v * v;
  const Tensor uv = u * v;
  const Tensor variances = (window_mean(x * x) - uu) + (window_mean(y * y) - vv);
  const Tensor covariance = window_mean(x * y) - uv;
  const Tensor similarity =
      (2 * uv + kC1) * (2 * covariance + kC2) / ((uu + vv + kC1) * (variances + kC2));
  return similarity.flatten(1).mean(1).cpu();
}

}  // namespace

Tensor mean_squared_errors(const Tensor& x, const Tensor& y) {
  const auto [a, b] = checked_pair(x, y);
  return errors_of(a, b);
}

double psnr(double mean_squared_error) {
  return -10 * std::log10(std::max(mean_squared_error, kSmallestError));
}

Tensor ssim_gauss11(const Tensor& x, const Tensor& y) {
  const auto [a, b] = checked_pair(x, y);
  SIGMA_CHECK(kUsage, window_fits(a), "SSIM: expected sides of at least {}, got {}x{}", kWindow,
              a.size(2), a.size(3));
  return ssim_of(a, b);
}

void ImageQuality::add(const Tensor& images, const Tensor& reconstructions) {
  const auto [x, y] = checked_pair(images, reconstructions);
  const Tensor errors = errors_of(x, y);
  if (!window_fits(x)) ssim_.reset();
  const Tensor similarities = ssim_ ? ssim_of(x, y) : Tensor();
  for (int64_t i = 0; i < x.size(0); ++i) {
    const double error = errors[i].item<double>();
    squared_error_ += error;
    psnr_ += psnr(error);
    if (ssim_) *ssim_ += similarities[i].item<double>();
  }
  count_ += x.size(0);
}

double ImageQuality::mean(double sum) const {
  SIGMA_CHECK(kUsage, count_ > 0, "image quality: expected at least 1 image, got none");
  return sum / static_cast<double>(count_);
}

double ImageQuality::psnr_mean_image() const { return mean(psnr_); }

double ImageQuality::psnr_of_mean() const { return psnr(mean(squared_error_)); }

std::optional<double> ImageQuality::ssim() const {
  return ssim_ ? std::optional(mean(*ssim_)) : std::nullopt;
}

}  // namespace sigma
