// How near reconstructions are to their images: PSNR and SSIM.
//
//   PSNR = -10 log10(max(MSE, 1e-10))                     (peak 1; identical images: 100 dB)
//   psnr_mean_image = mean_i PSNR(MSE_i),   psnr_of_mean = PSNR(mean_i MSE_i)
//   SSIM = mean of (2 u v + C1) (2 s_xy + C2) / ((u^2 + v^2 + C1) (s_xx + s_yy + C2))
//
// The two PSNRs of one model differ by about a decibel: name the one that is meant. SSIM (Wang et
// al., 2004) is the variant `gauss11`: u, v, s are means and population covariances under an 11x11
// Gaussian window of std 1.5, at every place where the window fits; C1 = .01^2, C2 = .03^2; mean
// over places and channels.
//
// Images [B,C,H,W] are floating and in [0,1]; values outside are clamped. Sigma's own range is
// [-1,1]: pass (x + 1) / 2. Padding is cropped by the caller. Everything is computed in float64.
// Errors: kUsage (shapes, dtype, nothing measured), kNonFinite. Not supported: SSIM of images with
// a side under 11, other windows.
#pragma once

#include <torch/types.h>

#include <optional>

namespace sigma {

/// Float64 [B]: the mean squared error of each image.
torch::Tensor mean_squared_errors(const torch::Tensor& x, const torch::Tensor& y);
/// In dB, of a mean squared error on [0,1].
double psnr(double mean_squared_error);
/// Float64 [B]. Sides at least 11.
torch::Tensor ssim_gauss11(const torch::Tensor& x, const torch::Tensor& y);

/// Means over a set that comes in batches; how it is cut moves the last bits of float64 at most.
class ImageQuality {
 public:
  void add(const torch::Tensor& images, const torch::Tensor& reconstructions);
  int64_t count() const { return count_; }
  double psnr_mean_image() const;
  double psnr_of_mean() const;
  /// Nothing where an image has a side under 11.
  std::optional<double> ssim() const;

 private:
  double mean(double sum) const;

  int64_t count_ = 0;
  double squared_error_ = 0;  // sums over images, in their order
  double psnr_ = 0;
  std::optional<double> ssim_ = 0;
};

}  // namespace sigma
