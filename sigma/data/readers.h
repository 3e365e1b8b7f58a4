// The readers behind open_dataset, one a file, and what they share.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "sigma/base/sha256.h"
#include "sigma/data/dataset.h"
#include "sigma/data/idx_format.h"

namespace sigma {

/// Labels of files without a declared number of classes stay below this.
inline constexpr int64_t kMaxClasses = 65536;
/// Decoded image folders below this many bytes stay in memory.
inline constexpr int64_t kFolderMemory = int64_t{1} << 30;

std::unique_ptr<Dataset> open_fashion(const DataConfig& config);
std::unique_ptr<Dataset> open_moving_fashion(const DataConfig& config);
std::unique_ptr<Dataset> open_idx(const DataConfig& config);
std::unique_ptr<Dataset> open_cifar10(const DataConfig& config);

struct FolderScan {
  std::unique_ptr<Dataset> dataset;  // of the good files; null if there are none
  std::vector<BadSample> bad;
};
/// Decodes every image of the split once. Errors: kUsage, kData about the folder itself; bad files
/// are returned.
FolderScan scan_folder(const DataConfig& config, int64_t memory = kFolderMemory);
/// scan_folder, with config.on_bad_image applied. Errors: kData listing every bad file.
std::unique_ptr<Dataset> open_folder(const DataConfig& config);
bool folder_has_test_split(const DataConfig& config);

/// Where fashion's files lie: data.root, or the package's folder.
std::filesystem::path fashion_folder(const DataConfig& config);

/// All samples in one tensor [n, ...]; get() returns views.
class MemoryDataset : public Dataset {
 public:
  /// `labels`: one a sample, or empty. `ids`: one a sample, or empty (then the index). Fills
  /// info.sample_shape.
  MemoryDataset(torch::Tensor data, std::vector<int64_t> labels, std::vector<std::string> ids,
                DatasetInfo info);
  int64_t size() const override { return data_.size(0); }
  Sample get(int64_t index) const override;
  const DatasetInfo& info() const override { return info_; }

 private:
  torch::Tensor data_;
  std::vector<int64_t> labels_;
  std::vector<std::string> ids_;
  DatasetInfo info_;
};

/// The images of an IDX file as uint8 [n,C,Y,X]. Errors: kData.
torch::Tensor idx_images(IdxArray array, const std::string& name);
/// "Fashion-MNIST, 60,000 training images 1x28x28".
std::string describe(const std::string& name, int64_t count, const std::string& split,
                     const std::vector<int64_t>& sample_shape);
/// The bytes of a file of the data set. Errors: kData (missing, unreadable) with `hint`.
std::string read_data_file(const std::filesystem::path& path, const std::string& hint = "");
/// Zeros on each side of the last two dimensions.
torch::Tensor pad_images(const torch::Tensor& images, int64_t pad);

/// data_hash, a sample at a time.
class DataHasher {
 public:
  /// The SHA-256 of the sample's bytes.
  std::array<uint8_t, 32> add(const Sample& sample);
  std::string hex() { return hash_.hex(); }  // once

 private:
  Sha256 hash_;
};

}  // namespace sigma
