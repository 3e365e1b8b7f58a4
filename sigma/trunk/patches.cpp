#include "sigma/trunk/patches.h"

#include <torch/types.h>

#include "sigma/base/error.h"

namespace sigma {

using torch::Tensor;

Grid patch_grid(int64_t height, int64_t width, int64_t patch) {
  SIGMA_CHECK(kUsage, height % patch == 0 && width % patch == 0,
              "patch_size: expected a divisor of {} x {}, got {}", height, width, patch);
  return {.frames = 1, .height = height / patch, .width = width / patch};
}

Tensor patchify(const Tensor& images, int64_t patch) {
  const Grid grid = patch_grid(images.size(2), images.size(3), patch);
  const int64_t B = images.size(0);
  const int64_t C = images.size(1);
  return images.reshape({B, C, grid.height, patch, grid.width, patch})
      .permute({0, 2, 4, 1, 3, 5})
      .reshape({B, grid.size(), C * patch * patch});
}

Tensor unpatchify(const Tensor& tokens, const Grid& grid, int64_t patch, int64_t channels) {
  const int64_t B = tokens.size(0);
  return tokens.reshape({B, grid.height, grid.width, patch, patch, channels})
      .permute({0, 5, 1, 3, 2, 4})
      .reshape({B, channels, grid.height * patch, grid.width * patch});
}

}  // namespace sigma
