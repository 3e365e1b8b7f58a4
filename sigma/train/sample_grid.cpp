#include "sigma/train/sample_grid.h"

#include <algorithm>

#include "sigma/data/dataset.h"
#include "sigma/train/load_generator.h"

namespace sigma {

Image sample_grid(GeneratorModel& model, torch::ScalarType dtype) {
  constexpr int64_t kMaxColumns = 10;
  constexpr int64_t kSmall = 64;  // images up to this side are doubled
  const int64_t classes = model.config().network.num_classes;
  const int64_t columns = classes > 0 ? std::min(classes, kMaxColumns) : kMaxColumns;
  // Of many classes the first.
  const int64_t stride = std::max(classes, columns);
  const torch::Tensor rows = torch::arange(kGridRows, torch::kInt64).unsqueeze(1) * stride;
  const torch::Tensor indices = (rows + torch::arange(columns, torch::kInt64)).flatten();
  const torch::Tensor images = model.sample_images(model.config().sampler, kGridSeed, indices,
                                                   class_labels(indices, classes), dtype);
  std::vector<Image> list;
  for (int64_t i = 0; i < images.size(0); ++i) list.push_back(to_image(images[i]));
  return image_grid(list, columns, /*gap=*/2, list[0].width <= kSmall ? 2 : 1);
}

}  // namespace sigma
