// Between bytes, floats and images.
#include <torch/types.h>

#include "sigma/base/error.h"
#include "sigma/data/dataset.h"
#include "sigma/data/readers.h"

namespace sigma {

torch::Tensor to_float(const torch::Tensor& images) {
  SIGMA_CHECK(kFailure, images.scalar_type() == torch::kUInt8, "to_float: expected uint8, got {}",
              torch::toString(images.scalar_type()));
  torch::Tensor x = images.to(torch::kFloat);
  // A tensor on the device: by a host scalar, CUDA multiplies with the reciprocal, which rounds
  // differently.
  return x.div_(torch::full({}, 127.5, x.options())).sub_(1);
}

torch::Tensor to_bytes(const torch::Tensor& images) {
  const torch::Tensor x = images.detach().to(torch::kFloat);
  SIGMA_CHECK(kNonFinite, torch::isfinite(x).all().item<bool>(),
              "images: expected finite values, got NaN or Inf");
  return x.mul(127.5).add_(128).clamp_(0, 255).to(torch::kUInt8);
}

torch::Tensor from_image(const Image& image) {
  auto* pixels = const_cast<uint8_t*>(image.pixels.data());  // from_blob takes no const; only read
  return torch::from_blob(pixels, {image.height, image.width, image.channels}, torch::kUInt8)
      .permute({2, 0, 1})
      .clone(torch::MemoryFormat::Contiguous);
}

Image to_image(const torch::Tensor& sample) {
  if (sample.dim() == 4)
    return to_image(sample.permute({0, 2, 1, 3}).flatten(2));  // frames side by side
  SIGMA_CHECK(kUsage,
              sample.scalar_type() == torch::kUInt8 && sample.dim() == 3 &&
                  (sample.size(0) == 1 || sample.size(0) == 3),
              "to_image: expected uint8 [1 or 3,Y,X] or [1 or 3,F,Y,X], got {} [{}]",
              torch::toString(sample.scalar_type()), fmt::join(sample.sizes(), ","));
  const torch::Tensor rows = sample.cpu().permute({1, 2, 0}).contiguous();
  const auto* begin = rows.data_ptr<uint8_t>();
  return {.height = sample.size(1),
          .width = sample.size(2),
          .channels = sample.size(0),
          .pixels = std::vector<uint8_t>(begin, begin + rows.numel())};
}

torch::Tensor pad_images(const torch::Tensor& images, int64_t pad) {
  return pad == 0 ? images : torch::constant_pad_nd(images, {pad, pad, pad, pad});
}

}  // namespace sigma
