#include "sigma/tokenizer/hog.h"

#include <torch/types.h>

#include <algorithm>
#include <numbers>

#include "sigma/base/error.h"
#include "sigma/trunk/patches.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr double kTiny = 1e-12;  // of the norm of a patch without edges

// a - b of the outer two of three neighbours along `dim`, smoothed by (1, 2, 1) along `across`: one
// of Sobel's kernels.
Tensor slope(const Tensor& padded, int64_t dim, int64_t across) {
  const int64_t n = padded.size(dim) - 2, m = padded.size(across) - 2;
  const Tensor d = padded.narrow(dim, 0, n) - padded.narrow(dim, 2, n);
  return torch::add(d.narrow(across, 0, m), d.narrow(across, 1, m), 2).add_(d.narrow(across, 2, m));
}

// [P,P], float64.
Tensor gaussian_window(int64_t patch, torch::Device device) {
  const auto P = static_cast<double>(patch);
  const Tensor offset =
      torch::arange(patch, torch::device(device).dtype(torch::kDouble)) - (P - 1) / 2;
  const Tensor g = (offset / (P / 2)).square().mul(-0.5).exp();
  const Tensor window = torch::outer(g, g);
  return window / window.sum();
}

// [I,H,W] int64: the place in [N,I,bins,n,n] of a pixel's cell in bin 0.
Tensor cell_places(int64_t channels, const Grid& grid, int64_t patch, int64_t bins, int64_t n,
                   torch::Device device) {
  const auto options = torch::device(device).dtype(torch::kInt64);
  const Tensor y = torch::arange(grid.height * patch, options).unsqueeze(1);
  const Tensor x = torch::arange(grid.width * patch, options);
  const Tensor token = y.div(patch, "floor") * grid.width + x.div(patch, "floor");
  const auto cell = [&](const Tensor& pixel) {
    return (pixel.remainder(patch) * n).div(patch, "floor");
  };
  const Tensor channel = torch::arange(channels, options).view({channels, 1, 1});
  return (token * channels + channel) * (bins * n * n) + cell(y) * n + cell(x);
}

}  // namespace

Tensor hog_targets(const Tensor& images, int64_t patch, int64_t bins, int64_t cells) {
  const torch::NoGradGuard no_grad;
  const int64_t B = images.size(0), I = images.size(1), H = images.size(2), W = images.size(3);
  SIGMA_CHECK(kUsage, H >= 2 && W >= 2, "hog: expected images of at least 2 x 2, got {} x {}", H,
              W);
  const Grid grid = patch_grid(H, W, patch);
  const int64_t n = std::min(cells, patch);
  const Tensor x = images.scalar_type() == torch::kDouble ? images : images.to(torch::kFloat);
  const Tensor padded = at::reflection_pad2d(x.contiguous(), {1, 1, 1, 1});
  const Tensor gx = slope(padded, 3, 2), gy = slope(padded, 2, 3);
  const Tensor window =
      gaussian_window(patch, x.device()).to(x.scalar_type()).repeat({grid.height, grid.width});
  const Tensor magnitude = gx.square().addcmul_(gy, gy).sqrt_().mul_(window);
  const Tensor bin =
      torch::atan2(gx, gy).div_(std::numbers::pi).mul_(bins).floor_().remainder_(bins);
  const Tensor place =
      bin.to(torch::kInt64).mul_(n * n).add_(cell_places(I, grid, patch, bins, n, x.device()));
  Tensor h = torch::zeros({B, grid.size() * I * bins * n * n}, x.options());
  h.scatter_add_(1, place.view({B, -1}), magnitude.view({B, -1}));
  h = h.view({B, grid.size(), I, bins, n * n});
  const Tensor norm = h.square().sum(3, /*keepdim=*/true).sqrt_();  // norm() is slow off the end
  return h.div_(norm.clamp_min_(kTiny)).flatten(2);
}

}  // namespace sigma
