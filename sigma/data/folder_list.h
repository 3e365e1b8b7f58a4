// Which files of an image folder belong to a split, and their labels: names only, nothing is
// decoded. Torch-free.
//
//   ROOT/[train|val|test/][CLASS/]**.{png,jpg,jpeg}    any case
//
// Hidden files and symbolic links are skipped. Names are in byte order. Classes are the sub-folders
// (of train/, if there are split folders); without sub-folders there are no labels. Without split
// folders a hash of the name decides: test iff the first 8 bytes (big-endian) of SHA-256(id) mod
// 1000 are below round(1000 fraction).
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace sigma {

struct FolderEntry {
  std::filesystem::path path;
  std::string id;  // the path below ROOT
  int64_t label = -1;
};

struct FolderList {
  std::vector<FolderEntry> entries;
  std::vector<std::string> class_names;
};

/// Errors: kData (no folder, files beside class folders, classes of test/ that train/ lacks),
/// kUsage (test_fraction beside split folders).
FolderList list_image_folder(const std::filesystem::path& root, const std::string& split,
                             double test_fraction);
/// Whether ROOT has split folders: train/, and besides it nothing but val/ and test/.
bool has_split_folders(const std::filesystem::path& root);

}  // namespace sigma
