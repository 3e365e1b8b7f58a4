// Fashion-MNIST (Xiao et al., 2017) from the files of a Debian package, known by the hashes of
// their decompressed bytes: Debian compressed them anew, so the published MD5 sums of the .gz files
// do not fit.
#include "sigma/base/error.h"
#include "sigma/data/idx_format.h"
#include "sigma/data/readers.h"

namespace sigma {
namespace {

constexpr const char* kPackageFolder = "/usr/share/datasets/fashion-mnist";
constexpr const char* kHint =
    "install the Debian package dataset-fashion-mnist, or set data.root to a folder with its four "
    "files";

struct PinnedFile {
  const char* name;
  const char* sha256;
};
constexpr PinnedFile kTrainImages = {
    "train-images-idx3-ubyte", "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"};
constexpr PinnedFile kTrainLabels = {
    "train-labels-idx1-ubyte", "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"};
constexpr PinnedFile kTestImages = {
    "t10k-images-idx3-ubyte", "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"};
constexpr PinnedFile kTestLabels = {
    "t10k-labels-idx1-ubyte", "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"};

// Compressed as packaged, or plain.
std::filesystem::path find_file(const std::filesystem::path& folder, const PinnedFile& file) {
  const std::filesystem::path plain = folder / file.name;
  return std::filesystem::is_regular_file(plain) ? plain
                                                 : folder / (std::string(file.name) + ".gz");
}

IdxArray read_pinned(const std::filesystem::path& folder, const PinnedFile& file) {
  const std::filesystem::path path = find_file(folder, file);
  IdxArray array;
  try {
    array = read_idx(read_data_file(path), path.string());
  } catch (const Error& error) {
    throw Error(error.kind(),
                fmt::format("Fashion-MNIST (package dataset-fashion-mnist): {}", error.what()),
                kHint);
  }
  const std::string actual = sha256_hex(array.file);
  if (actual != file.sha256) {
    throw Error(ErrorKind::kData,
                fmt::format("Fashion-MNIST (package dataset-fashion-mnist): expected SHA-256 {} of "
                            "the decompressed file, "
                            "got {} ({})",
                            file.sha256, actual, path.string()),
                kHint);
  }
  return array;
}

}  // namespace

std::filesystem::path fashion_folder(const DataConfig& config) {
  return config.root.empty() ? kPackageFolder : config.root;
}

std::unique_ptr<Dataset> open_fashion(const DataConfig& config) {
  const bool test = config.split == "test";
  const std::filesystem::path folder = fashion_folder(config);
  const PinnedFile& image_file = test ? kTestImages : kTrainImages;
  const PinnedFile& label_file = test ? kTestLabels : kTrainLabels;
  DatasetInfo info{.kind = "fashion"};
  info.class_names = {"T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
                      "Sandal",      "Shirt",   "Sneaker",  "Bag",   "Ankle boot"};
  info.num_classes = static_cast<int64_t>(info.class_names.size());
  const torch::Tensor images =
      pad_images(idx_images(read_pinned(folder, image_file), image_file.name), config.pad);
  std::vector<int64_t> labels =
      idx_labels(read_pinned(folder, label_file), label_file.name, info.num_classes);
  info.description =
      describe("Fashion-MNIST", images.size(0), config.split, images.sizes().slice(1).vec());
  return std::make_unique<MemoryDataset>(images, std::move(labels), std::vector<std::string>{},
                                         std::move(info));
}

}  // namespace sigma
