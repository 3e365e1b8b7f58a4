// Data set of kind folder: PNG and JPEG images, one sub-folder a class (folder_list.h says which
// files and labels).
#include <ATen/Parallel.h>
#include <torch/types.h>

#include <optional>

#include "sigma/base/error.h"
#include "sigma/data/folder_list.h"
#include "sigma/data/readers.h"

namespace sigma {
namespace {

// Decodes one file of the folder; shared by opening and by get().
struct FolderDecoder {
  DecodeLimits limits;
  int64_t size = 0;      // after center_crop; 0: as it is
  int64_t channels = 0;  // 0: as it is
  int64_t pad = 0;
  std::vector<int64_t> shape;  // [C,Y,X] before padding; empty: not known yet

  torch::Tensor decode(const FolderEntry& entry) const {
    Image image = decode_image(read_data_file(entry.path), entry.id, limits);
    if (channels > 0) image = with_channels(image, channels);
    if (size > 0) image = center_crop(image, size);
    const std::vector<int64_t> actual = {image.channels, image.height, image.width};
    SIGMA_CHECK(kData, shape.empty() || actual == shape,
                "image: expected {}x{} pixels as in the first image, got {}x{} ({})", shape[1],
                shape[2], actual[1], actual[2], entry.id);
    return pad_images(from_image(image), pad);
  }
};

// Decodes a file at each get().
class FolderDataset : public Dataset {
 public:
  FolderDataset(std::vector<FolderEntry> entries, FolderDecoder decoder, DatasetInfo info)
      : entries_(std::move(entries)), decoder_(std::move(decoder)), info_(std::move(info)) {}
  int64_t size() const override { return static_cast<int64_t>(entries_.size()); }
  Sample get(int64_t index) const override {
    SIGMA_CHECK(kFailure, index >= 0 && index < size(), "data set index: expected [0, {}), got {}",
                size(), index);
    const FolderEntry& entry = entries_[static_cast<size_t>(index)];
    return {decoder_.decode(entry), entry.label, entry.id};
  }
  const DatasetInfo& info() const override { return info_; }

 private:
  std::vector<FolderEntry> entries_;
  FolderDecoder decoder_;
  DatasetInfo info_;
};

std::string listed(const std::vector<BadSample>& bad) {
  std::string text;
  for (const BadSample& sample : bad) text += fmt::format("\n  {}: {}", sample.id, sample.reason);
  return text;
}

// Without the name that a message of decode_image begins with: it is listed beside the reason.
std::string reason_of(const std::string& message, const std::string& id) {
  return message.starts_with(id + ": ") ? message.substr(id.size() + 2) : message;
}

// The samples as far as they have been decoded; a message instead where a file is bad.
struct Decoded {
  torch::Tensor kept;  // [n,C,Y,X], or undefined if too large for the memory
  std::vector<std::optional<std::string>> errors;
};

Decoded decode_all(const std::vector<FolderEntry>& entries, FolderDecoder& decoder,
                   int64_t memory) {
  Decoded result;
  result.errors.resize(entries.size());
  const auto attempt = [&](size_t i) -> torch::Tensor {
    try {
      return decoder.decode(entries[i]);
    } catch (const Error& error) {
      result.errors[i] = error.what();
      return {};
    }
  };
  // The first good image decides the shape, so that the result does not depend on threads.
  size_t first = 0;
  torch::Tensor sample;
  for (; first < entries.size() && !sample.defined(); ++first) sample = attempt(first);
  if (!sample.defined()) return result;
  decoder.shape = {sample.size(0), sample.size(1) - 2 * decoder.pad,
                   sample.size(2) - 2 * decoder.pad};
  decoder.channels = decoder.shape[0];

  const auto count = static_cast<int64_t>(entries.size());
  if (static_cast<int64_t>(sample.nbytes()) < memory / count) {
    result.kept =
        torch::empty({count, sample.size(0), sample.size(1), sample.size(2)}, torch::kUInt8);
    result.kept[static_cast<int64_t>(first) - 1].copy_(sample);
  }
  at::parallel_for(static_cast<int64_t>(first), count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const torch::Tensor image = attempt(static_cast<size_t>(i));
      if (image.defined() && result.kept.defined()) result.kept[i].copy_(image);
    }
  });
  return result;
}

}  // namespace

bool folder_has_test_split(const DataConfig& config) {
  std::error_code ignored;
  if (config.test_fraction > 0) return true;
  return std::filesystem::is_directory(config.root, ignored) && has_split_folders(config.root) &&
         std::filesystem::is_directory(std::filesystem::path(config.root) / "test", ignored);
}

FolderScan scan_folder(const DataConfig& config, int64_t memory) {
  SIGMA_CHECK(kUsage, !config.root.empty(),
              "data.root: expected the folder of the images, got none");
  SIGMA_CHECK(kUsage, config.channels == 0 || config.channels == 1 || config.channels == 3,
              "data.channels: expected 0, 1 or 3, got {}", config.channels);
  FolderList list = list_image_folder(config.root, config.split, config.test_fraction);
  FolderDecoder decoder{.limits = {.max_pixels = config.max_pixels},
                        .size = config.size,
                        .channels = config.channels,
                        .pad = config.pad,
                        .shape = {}};
  const Decoded decoded = decode_all(list.entries, decoder, memory);

  FolderScan scan;
  std::vector<FolderEntry> good;
  std::vector<int64_t> indices;
  for (size_t i = 0; i < list.entries.size(); ++i) {
    if (decoded.errors[i]) {
      scan.bad.push_back({list.entries[i].id, reason_of(*decoded.errors[i], list.entries[i].id)});
    } else {
      good.push_back(std::move(list.entries[i]));
      indices.push_back(static_cast<int64_t>(i));
    }
  }
  if (good.empty()) return scan;

  DatasetInfo info{.kind = "folder"};
  info.sample_shape = {decoder.shape[0], decoder.shape[1] + 2 * config.pad,
                       decoder.shape[2] + 2 * config.pad};
  info.description = describe(std::filesystem::path(config.root).filename().string(),
                              static_cast<int64_t>(good.size()), config.split, info.sample_shape);
  info.num_classes = static_cast<int64_t>(list.class_names.size());
  info.class_names = std::move(list.class_names);
  info.skipped = static_cast<int64_t>(scan.bad.size());
  if (!decoded.kept.defined()) {
    scan.dataset =
        std::make_unique<FolderDataset>(std::move(good), std::move(decoder), std::move(info));
    return scan;
  }
  std::vector<int64_t> labels;
  std::vector<std::string> ids;
  for (FolderEntry& entry : good) {
    labels.push_back(entry.label);
    ids.push_back(std::move(entry.id));
  }
  const torch::Tensor kept =
      scan.bad.empty() ? decoded.kept : decoded.kept.index_select(0, torch::tensor(indices));
  scan.dataset =
      std::make_unique<MemoryDataset>(kept, std::move(labels), std::move(ids), std::move(info));
  return scan;
}

std::unique_ptr<Dataset> open_folder(const DataConfig& config) {
  FolderScan scan = scan_folder(config);
  if (!scan.bad.empty() && (config.on_bad_image == "stop" || !scan.dataset)) {
    throw Error(
        ErrorKind::kData,
        fmt::format(
            "image folder: expected only readable images of one size, got {} bad files ({}):{}",
            scan.bad.size(), config.root, listed(scan.bad)),
        "remove or repair them, set data.size, or set data.on_bad_image = \"skip\"");
  }
  return std::move(scan.dataset);
}

}  // namespace sigma
