// CIFAR-10 (Krizhevsky, 2009), binary version: a record is a label u8, then the planes R, G, B of
// 32x32 pixels.
#include <cstring>

#include "sigma/base/error.h"
#include "sigma/data/readers.h"

namespace sigma {
namespace {

constexpr int64_t kSide = 32;
constexpr size_t kPixels = 3 * kSide * kSide;
constexpr size_t kRecord = 1 + kPixels;
constexpr size_t kRecords = 10000;  // a file
constexpr int64_t kClasses = 10;

void read_batch(const std::filesystem::path& path, uint8_t* pixels, std::vector<int64_t>& labels) {
  const std::string bytes =
      read_data_file(path, "data.root is the folder of data_batch_{1..5}.bin and test_batch.bin");
  SIGMA_CHECK(kData, bytes.size() == kRecords * kRecord,
              "CIFAR-10: expected {} bytes, got {} ({}, offset {})", kRecords * kRecord,
              bytes.size(), path.string(), std::min(bytes.size(), kRecords * kRecord));
  for (size_t i = 0; i < kRecords; ++i) {
    const auto label = static_cast<uint8_t>(bytes[i * kRecord]);
    SIGMA_CHECK(kData, label < kClasses, "CIFAR-10 label: expected [0, {}), got {} ({}, offset {})",
                kClasses, label, path.string(), i * kRecord);
    labels.push_back(label);
    std::memcpy(pixels + i * kPixels, bytes.data() + i * kRecord + 1, kPixels);
  }
}

}  // namespace

std::unique_ptr<Dataset> open_cifar10(const DataConfig& config) {
  SIGMA_CHECK(kUsage, !config.root.empty(),
              "data.root: expected the folder of CIFAR-10's binary files, got none");
  std::vector<std::string> files = {"test_batch.bin"};
  if (config.split == "train") {
    files.clear();
    for (int i = 1; i <= 5; ++i) files.push_back(fmt::format("data_batch_{}.bin", i));
  }
  torch::Tensor images =
      torch::empty({static_cast<int64_t>(files.size() * kRecords), 3, kSide, kSide}, torch::kUInt8);
  std::vector<int64_t> labels;
  for (size_t i = 0; i < files.size(); ++i) {
    read_batch(std::filesystem::path(config.root) / files[i],
               images.data_ptr<uint8_t>() + i * kRecords * kPixels, labels);
  }
  images = pad_images(images, config.pad);
  DatasetInfo info{.kind = "cifar10"};
  info.description =
      describe("CIFAR-10", images.size(0), config.split, images.sizes().slice(1).vec());
  info.num_classes = kClasses;
  info.class_names = {"airplane", "automobile", "bird",  "cat",  "deer",
                      "dog",      "frog",       "horse", "ship", "truck"};
  return std::make_unique<MemoryDataset>(images, std::move(labels), std::vector<std::string>{},
                                         std::move(info));
}

}  // namespace sigma
