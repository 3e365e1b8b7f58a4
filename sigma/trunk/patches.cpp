#include "sigma/trunk/patches.h"

#include <torch/types.h>

#include "sigma/base/error.h"

namespace sigma {

using torch::Tensor;

Grid patch_grid(int64_t height, int64_t width, int64_t patch, int64_t frames) {
  SIGMA_CHECK(kUsage, height % patch == 0 && width % patch == 0,
              "patch_size: expected a divisor of {} x {}, got {}", height, width, patch);
  return {.frames = frames, .height = height / patch, .width = width / patch};
}

Tensor patchify(const Tensor& images, int64_t patch) {
  const int64_t frames = images.dim() == 5 ? images.size(2) : 1;
  const Grid grid = patch_grid(images.size(-2), images.size(-1), patch, frames);
  const int64_t B = images.size(0);
  const int64_t C = images.size(1);
  return images.reshape({B, C, frames, grid.height, patch, grid.width, patch})
      .permute({0, 2, 3, 5, 1, 4, 6})
      .reshape({B, grid.size(), C * patch * patch});
}

Tensor unpatchify(const Tensor& tokens, const Grid& grid, int64_t patch, int64_t channels) {
  const int64_t B = tokens.size(0);
  const Tensor clips =
      tokens.reshape({B, grid.frames, grid.height, grid.width, patch, patch, channels})
          .permute({0, 6, 1, 2, 4, 3, 5})
          .reshape({B, channels, grid.frames, grid.height * patch, grid.width * patch});
  return grid.frames == 1 ? clips.squeeze(2) : clips;
}

}  // namespace sigma
