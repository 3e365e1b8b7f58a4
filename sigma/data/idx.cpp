// Data set of kind idx: a file of images and, if there are labels, a file of labels.
#include <algorithm>

#include "sigma/base/error.h"
#include "sigma/data/idx_format.h"
#include "sigma/data/readers.h"

namespace sigma {

torch::Tensor idx_images(IdxArray array, const std::string& name) {
  check_idx_images(array, name);
  const std::vector<int64_t> sizes = array.sizes;
  auto owner = std::make_shared<IdxArray>(std::move(array));
  torch::Tensor images = torch::from_blob(
      owner->file.data() + owner->data_offset, sizes, [owner](void*) {}, torch::kUInt8);
  return sizes.size() == 3 ? images.unsqueeze(1) : images.permute({0, 3, 1, 2}).contiguous();
}

std::unique_ptr<Dataset> open_idx(const DataConfig& config) {
  SIGMA_CHECK(kUsage, config.split == "train",
              "data.split: expected train, as idx files have no splits, got {}", config.split);
  SIGMA_CHECK(kUsage, !config.images.empty(),
              "data.images: expected an IDX file of images, got none");
  const std::filesystem::path root = config.root;
  const std::filesystem::path image_file = root / config.images;
  const torch::Tensor images =
      idx_images(read_idx(read_data_file(image_file), image_file.string()), image_file.string());
  std::vector<int64_t> labels;
  DatasetInfo info{.kind = "idx"};
  if (!config.labels.empty()) {
    const std::filesystem::path label_file = root / config.labels;
    labels = idx_labels(read_idx(read_data_file(label_file), label_file.string()),
                        label_file.string(), kMaxClasses);
    SIGMA_CHECK(kData, static_cast<int64_t>(labels.size()) == images.size(0),
                "IDX labels: expected {}, one an image, got {} ({}, offset 4)", images.size(0),
                labels.size(), label_file.string());
    info.num_classes = *std::max_element(labels.begin(), labels.end()) + 1;
    for (int64_t i = 0; i < info.num_classes; ++i) info.class_names.push_back(std::to_string(i));
  }
  const torch::Tensor padded = pad_images(images, config.pad);
  info.description = describe(image_file.filename().string(), padded.size(0), config.split,
                              padded.sizes().slice(1).vec());
  return std::make_unique<MemoryDataset>(padded, std::move(labels), std::vector<std::string>{},
                                         std::move(info));
}

}  // namespace sigma
