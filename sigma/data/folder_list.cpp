#include "sigma/data/folder_list.h"

#include <algorithm>
#include <cmath>

#include "sigma/base/error.h"
#include "sigma/base/sha256.h"

namespace sigma {
namespace {

namespace fs = std::filesystem;

struct Listing {
  std::vector<std::string> folders;  // names, in byte order
  std::vector<std::string> files;
};

Listing list(const fs::path& folder) {
  Listing listing;
  std::error_code error;
  fs::directory_iterator entry(folder, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.starts_with('.')) continue;
    const fs::file_status status = entry->symlink_status();
    if (fs::is_directory(status)) listing.folders.push_back(name);
    if (fs::is_regular_file(status)) listing.files.push_back(name);
  }
  SIGMA_CHECK(kData, !error, "image folder: expected a readable folder, got {} ({})",
              error.message(), folder.string());
  std::sort(listing.folders.begin(), listing.folders.end());
  std::sort(listing.files.begin(), listing.files.end());
  SIGMA_CHECK(kData, listing.folders.empty() || listing.files.empty(),
              "image folder: expected only class folders, or only images, got {} files beside {} "
              "folders, such as {} ({})",
              listing.files.size(), listing.folders.size(),
              listing.files.empty() ? "" : listing.files.front(), folder.string());
  return listing;
}

bool is_image_name(const fs::path& path) {
  std::string extension = path.extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(), [](char c) {
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  });
  return extension == ".png" || extension == ".jpg" || extension == ".jpeg";
}

void add_images(const fs::path& root, const fs::path& folder, int64_t label,
                std::vector<FolderEntry>& entries) {
  std::error_code error;
  fs::recursive_directory_iterator entry(folder, error);
  for (; !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    const fs::path& path = entry->path();
    const fs::file_status status = entry->symlink_status();
    if (path.filename().string().starts_with('.')) {
      if (fs::is_directory(status)) entry.disable_recursion_pending();
      continue;
    }
    if (!fs::is_regular_file(status) || !is_image_name(path)) continue;
    entries.push_back({path, path.lexically_relative(root).generic_string(), label});
  }
  SIGMA_CHECK(kData, !error, "image folder: expected a readable folder, got {} ({})",
              error.message(), folder.string());
}

bool held_out(const std::string& id, double fraction) {
  Sha256 hash;
  hash.update(id.data(), id.size());
  const auto digest = hash.digest();
  uint64_t key = 0;
  for (size_t i = 0; i < 8; ++i) key = key << 8 | digest[i];
  return key % 1000 < static_cast<uint64_t>(std::lround(1000 * fraction));
}

}  // namespace

bool has_split_folders(const fs::path& root) {
  const std::vector<std::string> folders = list(root).folders;
  const auto is_split = [](const std::string& name) {
    return name == "train" || name == "val" || name == "test";
  };
  return std::find(folders.begin(), folders.end(), "train") != folders.end() &&
         std::all_of(folders.begin(), folders.end(), is_split);
}

FolderList list_image_folder(const fs::path& root, const std::string& split, double test_fraction) {
  SIGMA_CHECK(kData, fs::is_directory(root), "image folder: expected a folder, got none ({})",
              root.string());
  const bool split_folders = has_split_folders(root);
  SIGMA_CHECK(kUsage, !split_folders || test_fraction == 0,
              "data.test_fraction: expected 0 beside the folder train, got {} ({})", test_fraction,
              root.string());
  SIGMA_CHECK(kUsage, split_folders || test_fraction > 0 || split == "train",
              "data.split = {}: expected a folder {} or data.test_fraction above 0, got none ({})",
              split, split, root.string());
  const fs::path folder = split_folders ? root / split : root;
  const Listing listing = list(folder);

  FolderList result;
  // train/ numbers the classes of every split.
  result.class_names = split_folders ? list(root / "train").folders : listing.folders;
  const auto& names = result.class_names;
  SIGMA_CHECK(kData, listing.folders.empty() == names.empty(),
              "image folder: expected class folders as in train, got {} ({})",
              listing.folders.size(), folder.string());
  if (listing.folders.empty()) add_images(root, folder, -1, result.entries);
  for (const std::string& name : listing.folders) {
    const auto found = std::lower_bound(names.begin(), names.end(), name);
    SIGMA_CHECK(kData, found != names.end() && *found == name,
                "image folder: expected a class of train, got {} ({})", name, folder.string());
    add_images(root, folder / name, found - names.begin(), result.entries);
  }

  if (!split_folders && test_fraction > 0) {
    std::erase_if(result.entries, [&](const FolderEntry& entry) {
      return held_out(entry.id, test_fraction) != (split == "test");
    });
  }
  std::sort(result.entries.begin(), result.entries.end(),
            [](const FolderEntry& a, const FolderEntry& b) { return a.id < b.id; });
  SIGMA_CHECK(kData, !result.entries.empty(),
              "image folder: expected at least one .png, .jpg or .jpeg, got none ({})",
              folder.string());
  return result;
}

}  // namespace sigma
