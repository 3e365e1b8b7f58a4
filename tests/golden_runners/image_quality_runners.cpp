// Image quality: PSNR, both means, and SSIM.
#include <torch/types.h>

#include "sigma/metrics/image_quality.h"
#include "tests/golden_runners/golden.h"

namespace sigma::golden {

using torch::Tensor;

void run_image_quality(const GoldenFile& file, Report& report) {
  const Tensor x = file.load("input.x");
  const Tensor y = file.load("input.y");
  const auto scalar = [](double value) { return torch::tensor(value, torch::kDouble); };
  // A mean squared error carries the rounding of pairwise sums; 10 log10 turns a relative error of
  // e into 4.4 e decibels of some tens.
  const double bound = 16 * kEps64;
  const Tensor errors = mean_squared_errors(x, y);
  report.relative("mse", errors, file.get("output.mse"), bound);
  std::vector<double> decibels;
  for (int64_t i = 0; i < errors.size(0); ++i) decibels.push_back(psnr(errors[i].item<double>()));
  report.relative("psnr", torch::tensor(decibels, torch::kDouble), file.get("output.psnr"), bound);
  // A variance is a difference of terms up to 1, each wrong by some eps, over at least
  // C2 = .03^2.
  const double ssim_bound = 16 * kEps64 / (0.03 * 0.03);
  const Tensor similarities = file.get("output.ssim_gauss11");
  report.absolute("ssim_gauss11", ssim_gauss11(x, y), similarities, ssim_bound);

  ImageQuality quality;
  for (const auto& [a, b] :
       {std::pair{x.narrow(0, 0, 1), y.narrow(0, 0, 1)}, std::pair{x.slice(0, 1), y.slice(0, 1)}})
    quality.add(a, b);
  report.relative("psnr_mean_image", scalar(quality.psnr_mean_image()),
                  file.get("output.psnr_mean_image"), bound);
  report.relative("psnr_of_mean", scalar(quality.psnr_of_mean()), file.get("output.psnr_of_mean"),
                  bound);
  report.absolute("ssim", scalar(quality.ssim().value()), similarities.mean().cpu(), ssim_bound);
  report.skip("metric ssim uniform7_r2");
}

}  // namespace sigma::golden
