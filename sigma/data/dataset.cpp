#include "sigma/data/dataset.h"

#include <algorithm>

#include "sigma/base/error.h"
#include "sigma/data/readers.h"
#include "sigma/io/files.h"

namespace sigma {

void DataConfig::visit(ConfigVisitor& v) {
  v.choice("kind", kind, {"fashion", "moving_fashion", "idx", "cifar10", "folder"},
           "format of the data set");
  v.choice("split", split, {"train", "test"}, "part of the data set");
  v.field("root", root, "folder of the files; empty: the kind's own place", Role::kRuntime);
  v.field("pad", pad, in(0, 8), "zeros added on each side, pixels");
  v.field("threads", threads, in(0, 64), "threads that make batches; 0: none but the caller",
          Role::kRuntime);
  v.field("prefetch", prefetch, in(1, 64), "batches made ahead", Role::kRuntime);
  if (v.when(kind, "moving_fashion")) v.field("frames", frames, in(2, 64), "frames of a clip");
  if (v.when(kind, "idx")) {
    v.field("images", images, "IDX file of images, below data.root");
    v.field("labels", labels, "IDX file of labels, below data.root; empty: none");
  }
  if (v.when(kind, "folder")) {
    v.field("size", size, in(0, 4096),
            "side after a centre crop, pixels; 0: as they are, all equal");
    v.field("channels", channels, in(0, 3), "1 grey, 3 RGB; 0: as the first image");
    v.field("test_fraction", test_fraction, in(0, 0.5),
            "share held out by a hash of the name, without train/ and test/");
    v.field("max_pixels", max_pixels, in(1, double(int64_t{1} << 30)), "larger images are refused");
    v.choice("on_bad_image", on_bad_image, {"stop", "skip"},
             "an unreadable image ends the program, or is counted");
  }
}

std::unique_ptr<Dataset> open_dataset(const DataConfig& config) {
  SIGMA_CHECK(kUsage, config.split == "train" || config.split == "test",
              "data.split: expected train or test, got \"{}\"", config.split);
  if (config.kind == "fashion") return open_fashion(config);
  if (config.kind == "moving_fashion") return open_moving_fashion(config);
  if (config.kind == "idx") return open_idx(config);
  if (config.kind == "cifar10") return open_cifar10(config);
  if (config.kind == "folder") return open_folder(config);
  fail(ErrorKind::kUsage,
       "data.kind: expected fashion, moving_fashion, idx, cifar10 or folder, got \"{}\"",
       config.kind);
}

bool has_test_split(const DataConfig& config) {
  if (config.kind == "folder") return folder_has_test_split(config);
  return config.kind != "idx";
}

std::vector<DataReader> list_readers() {
  const bool fashion = std::filesystem::exists(fashion_folder({}) / "train-images-idx3-ubyte.gz");
  return {
      {"fashion", "Fashion-MNIST: 70,000 grey images 28x28, 10 classes",
       "Debian package dataset-fashion-mnist, or data.root", fashion},
      {"moving_fashion",
       "clips of a Fashion-MNIST image that flies and bounces, data.frames x 28x28", "as fashion",
       fashion},
      {"idx", "IDX files, plain or gzip", "data.images, data.labels", false},
      {"cifar10", "CIFAR-10, binary version: 60,000 RGB images 32x32, 10 classes",
       "data.root with data_batch_{1..5}.bin and test_batch.bin", false},
      {"folder", "a folder of PNG and JPEG images, one sub-folder a class", "data.root", false},
  };
}

std::array<uint8_t, 32> DataHasher::add(const Sample& sample) {
  const torch::Tensor data = sample.data.contiguous();
  Sha256 pixels;
  pixels.update(data.data_ptr(), data.nbytes());
  const std::array<uint8_t, 32> digest = pixels.digest();
  const auto label = static_cast<int32_t>(sample.label);
  hash_.update(sample.id.c_str(), sample.id.size() + 1);  // with its NUL
  hash_.update(&label, sizeof(label));
  hash_.update(digest.data(), digest.size());
  return digest;
}

Samples read_samples(const Dataset& data, int64_t first, int64_t count) {
  std::vector<torch::Tensor> samples;
  std::vector<int64_t> labels;
  for (int64_t i = first; i < first + count; ++i) {
    const Sample sample = data.get(i);
    samples.push_back(sample.data);
    labels.push_back(sample.label);
  }
  return {.data = torch::stack(samples), .labels = torch::tensor(labels, torch::kInt64)};
}

std::string data_hash(const Dataset& dataset) {
  DataHasher hasher;
  for (int64_t i = 0; i < dataset.size(); ++i) hasher.add(dataset.get(i));
  return hasher.hex();
}

MemoryDataset::MemoryDataset(torch::Tensor data, std::vector<int64_t> labels,
                             std::vector<std::string> ids, DatasetInfo info)
    : data_(data.contiguous()),
      labels_(std::move(labels)),
      ids_(std::move(ids)),
      info_(std::move(info)) {
  info_.sample_shape = data_.sizes().slice(1).vec();
}

Sample MemoryDataset::get(int64_t index) const {
  SIGMA_CHECK(kFailure, index >= 0 && index < size(), "data set index: expected [0, {}), got {}",
              size(), index);
  const auto i = static_cast<size_t>(index);
  return {data_.select(0, index), labels_.empty() ? -1 : labels_[i],
          ids_.empty() ? std::to_string(index) : ids_[i]};
}

std::string describe(const std::string& name, int64_t count, const std::string& split,
                     const std::vector<int64_t>& sample_shape) {
  std::string digits = std::to_string(count);
  for (auto at = static_cast<int64_t>(digits.size()) - 3; at > 0; at -= 3)
    digits.insert(static_cast<size_t>(at), ",");
  return fmt::format("{}, {} {} images {}", name, digits, split == "test" ? "test" : "training",
                     fmt::join(sample_shape, "x"));
}

std::string read_data_file(const std::filesystem::path& path, const std::string& hint) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) {
    throw Error(ErrorKind::kData,
                fmt::format("data: expected a file, got none ({})", path.string()), hint);
  }
  try {
    return read_file(path);
  } catch (const Error& error) {
    throw Error(ErrorKind::kData, error.what(), hint);
  }
}

}  // namespace sigma
