#include <gtest/gtest.h>
#include <torch/types.h>

#include "sigma/data/dataset.h"
#include "sigma/data/folder_list.h"
#include "sigma/data/readers.h"
#include "tests/data/testing.h"

namespace sigma {
namespace {

using testing::error_of;
using testing::expect_contains;
using testing::png;

std::vector<std::string> ids(const Dataset& dataset) {
  std::vector<std::string> result;
  for (int64_t i = 0; i < dataset.size(); ++i) result.push_back(dataset.get(i).id);
  return result;
}

std::vector<int64_t> labels(const Dataset& dataset) {
  std::vector<int64_t> result;
  for (int64_t i = 0; i < dataset.size(); ++i) result.push_back(dataset.get(i).label);
  return result;
}

TEST(Folder, ClassesAndNamesAreInByteOrder) {
  const Scratch folder;
  folder.write("b/2.png", png(4, 5, 1, 20));
  folder.write("b/10.PNG", png(4, 5, 1, 10));
  folder.write("b/deep/er/x.png", png(4, 5, 1, 30));
  folder.write("B/1.png", png(4, 5, 1, 40));
  folder.write("b/notes.txt", "not an image by its name");
  const auto dataset = open_dataset({.kind = "folder", .root = folder.path()});
  EXPECT_EQ(dataset->info().class_names, (std::vector<std::string>{"B", "b"}));
  EXPECT_EQ(dataset->info().sample_shape, (std::vector<int64_t>{1, 4, 5}));
  EXPECT_EQ(ids(*dataset),
            (std::vector<std::string>{"B/1.png", "b/10.PNG", "b/2.png", "b/deep/er/x.png"}));
  EXPECT_EQ(labels(*dataset), (std::vector<int64_t>{0, 1, 1, 1}));
  EXPECT_TRUE(dataset->get(2).data.equal(torch::full({1, 4, 5}, 20, torch::kUInt8)));
}

TEST(Folder, WithoutSubfoldersThereAreNoLabels) {
  const Scratch folder;
  folder.write("2.png", png(2, 2, 3, 1));
  folder.write("1.png", png(2, 2, 3, 2));
  const auto dataset = open_dataset({.kind = "folder", .root = folder.path()});
  EXPECT_EQ(dataset->info().num_classes, 0);
  EXPECT_EQ(labels(*dataset), (std::vector<int64_t>{-1, -1}));
  EXPECT_EQ(ids(*dataset), (std::vector<std::string>{"1.png", "2.png"}));
}

TEST(Folder, HiddenFilesAndLinksAreSkipped) {
  const Scratch folder;
  folder.write("a/1.png", png(2, 2, 1, 1));
  folder.write("a/.2.png", "broken");
  folder.write("a/.hidden/3.png", "broken");
  folder.write(".git/4.png", "broken");
  folder.write(".DS_Store", "beside the class folders, but hidden");
  std::filesystem::create_symlink(folder.path("a/1.png"), folder.path("a/5.png"));
  std::filesystem::create_directory_symlink(folder.path("a"), folder.path("z"));
  const auto dataset = open_dataset({.kind = "folder", .root = folder.path()});
  EXPECT_EQ(ids(*dataset), std::vector<std::string>{"a/1.png"});
  EXPECT_EQ(dataset->info().class_names, std::vector<std::string>{"a"});
}

TEST(Folder, FilesBesideClassFoldersAreRefused) {
  const Scratch folder;
  folder.write("a/1.png", png(2, 2, 1, 1));
  folder.write("stray.png", png(2, 2, 1, 1));
  const std::string message =
      error_of(ErrorKind::kData, [&] { open_dataset({.kind = "folder", .root = folder.path()}); });
  expect_contains(message, "stray.png");
}

TEST(Folder, SplitFolders) {
  const Scratch folder;
  folder.write("train/a/1.png", png(2, 2, 1, 1));
  folder.write("train/b/1.png", png(2, 2, 1, 2));
  const DataConfig train{.kind = "folder", .root = folder.path()};
  DataConfig test = train;
  test.split = "test";
  EXPECT_FALSE(has_test_split(train));
  error_of(ErrorKind::kData, [&] { open_dataset(test); });

  // A class keeps its number although the test split lacks another.
  folder.write("test/b/9.png", png(2, 2, 1, 3));
  EXPECT_TRUE(has_test_split(train));
  EXPECT_EQ(ids(*open_dataset(train)),
            (std::vector<std::string>{"train/a/1.png", "train/b/1.png"}));
  EXPECT_EQ(labels(*open_dataset(test)), std::vector<int64_t>{1});
  EXPECT_EQ(open_dataset(test)->info().num_classes, 2);

  folder.write("test/c/9.png", png(2, 2, 1, 3));
  expect_contains(error_of(ErrorKind::kData, [&] { open_dataset(test); }), "got c");
  test.test_fraction = 0.1;
  error_of(ErrorKind::kUsage, [&] { open_dataset(test); });
}

TEST(Folder, AClassMayBeCalledTrain) {
  const Scratch folder;
  folder.write("train/1.png", png(2, 2, 1, 1));
  folder.write("plane/1.png", png(2, 2, 1, 2));
  const DataConfig config{.kind = "folder", .root = folder.path()};
  EXPECT_EQ(open_dataset(config)->info().class_names, (std::vector<std::string>{"plane", "train"}));
  DataConfig test = config;
  test.split = "test";
  error_of(ErrorKind::kUsage, [&] { open_dataset(test); });
}

TEST(Folder, HashSplit) {
  const Scratch folder;
  // First 8 bytes of SHA-256 mod 1000, by Python's hashlib: a/1.png 410, a/2.png 483, b/1.png 421.
  for (const char* name : {"a/1.png", "a/2.png", "b/1.png"}) folder.write(name, png(2, 2, 1, 1));
  const auto split = [&](const std::string& name, double fraction) {
    return ids(*open_dataset(
        {.kind = "folder", .split = name, .root = folder.path(), .test_fraction = fraction}));
  };
  EXPECT_EQ(split("test", 0.421), std::vector<std::string>{"a/1.png"});
  EXPECT_EQ(split("test", 0.422), (std::vector<std::string>{"a/1.png", "b/1.png"}));
  EXPECT_EQ(split("train", 0.422), std::vector<std::string>{"a/2.png"});
  EXPECT_EQ(split("train", 0).size(), 3u);
}

// Good images, and files that are bad in several ways.
class BadImages : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_.write("a/0-empty.png", "");
    folder_.write("a/1.png", png(4, 4, 1, 1));
    folder_.write("a/2-text.png", "this is text");
    const std::string good = png(4, 4, 1, 1);
    folder_.write("a/3-truncated.png", good.substr(0, good.size() / 2));
    folder_.write("a/4-larger.png", png(5, 4, 1, 1));
    folder_.write("b/5.png", png(4, 4, 1, 9));
    folder_.write("b/6-rgb.png", png(4, 4, 3, 7));
    config_ = {.kind = "folder", .root = folder_.path()};
  }
  Scratch folder_;
  DataConfig config_;
};

TEST_F(BadImages, AreAllListedAtOnce) {
  const std::string message = error_of(ErrorKind::kData, [&] { open_dataset(config_); });
  for (const char* name :
       {"a/0-empty.png", "a/2-text.png", "a/3-truncated.png", "a/4-larger.png", "4 bad files"}) {
    expect_contains(message, name);
  }
  EXPECT_EQ(message.find("a/1.png"), std::string::npos) << message;
  EXPECT_EQ(message.find("b/"), std::string::npos) << message;
}

TEST_F(BadImages, OrAreSkippedAndCounted) {
  config_.on_bad_image = "skip";
  for (const int64_t memory : {kFolderMemory, int64_t{0}}) {
    const FolderScan scan = scan_folder(config_, memory);
    ASSERT_EQ(scan.bad.size(), 4u);
    EXPECT_EQ(scan.bad[0].id, "a/0-empty.png");
    EXPECT_EQ(scan.dataset->info().skipped, 4);
    EXPECT_EQ(ids(*scan.dataset), (std::vector<std::string>{"a/1.png", "b/5.png", "b/6-rgb.png"}));
    EXPECT_EQ(labels(*scan.dataset), (std::vector<int64_t>{0, 1, 1}));
    // The first good image is grey, so the RGB one becomes grey: 7 * (0.299 + 0.587 + 0.114) = 7.
    EXPECT_TRUE(scan.dataset->get(2).data.equal(torch::full({1, 4, 4}, 7, torch::kUInt8)));
  }
  EXPECT_EQ(open_dataset(config_)->size(), 3);
}

TEST_F(BadImages, NoGoodImageIsAnErrorEvenIfSkipped) {
  config_.on_bad_image = "skip";
  std::filesystem::remove_all(folder_.path("b"));
  std::filesystem::remove(folder_.path("a/1.png"));
  std::filesystem::remove(folder_.path("a/4-larger.png"));
  expect_contains(error_of(ErrorKind::kData, [&] { open_dataset(config_); }), "3 bad files");
}

TEST_F(BadImages, CropMakesSizesEqual) {
  config_.size = 3;
  config_.channels = 3;
  config_.pad = 1;
  const FolderScan scan = scan_folder(config_);
  EXPECT_EQ(scan.bad.size(), 3u);  // the larger one is good now
  EXPECT_EQ(scan.dataset->info().sample_shape, (std::vector<int64_t>{3, 5, 5}));
  const torch::Tensor image = scan.dataset->get(0).data;
  EXPECT_TRUE(image.slice(1, 1, 4).slice(2, 1, 4).equal(torch::ones({3, 3, 3}, torch::kUInt8)));
  EXPECT_EQ(image.sum().item<int64_t>(), 27);
}

TEST(Folder, LargeOnesAreDecodedAgain) {
  const Scratch folder;
  for (int i = 0; i < 5; ++i)
    folder.write(fmt::format("a/{}.png", i), png(3, 3, 1, static_cast<uint8_t>(i)));
  const DataConfig config{.kind = "folder", .root = folder.path()};
  const FolderScan kept = scan_folder(config);
  const FolderScan again = scan_folder(config, 44);  // 5 images of 9 bytes do not fit
  EXPECT_EQ(data_hash(*kept.dataset), data_hash(*again.dataset));
  std::filesystem::remove(folder.path("a/3.png"));
  EXPECT_EQ(kept.dataset->get(3).data.sum().item<int64_t>(), 27);
  expect_contains(error_of(ErrorKind::kData, [&] { again.dataset->get(3); }), "a/3.png");
}

TEST(Folder, LimitsAndMissingFolders) {
  const Scratch folder;
  folder.write("a/1.png", png(10, 10, 1, 1));
  expect_contains(
      error_of(ErrorKind::kData,
               [&] { open_dataset({.kind = "folder", .root = folder.path(), .max_pixels = 99}); }),
      "a/1.png");
  error_of(ErrorKind::kUsage,
           [&] { open_dataset({.kind = "folder", .root = folder.path(), .channels = 2}); });
  error_of(ErrorKind::kUsage, [&] { open_dataset({.kind = "folder"}); });
  error_of(ErrorKind::kData,
           [&] { open_dataset({.kind = "folder", .root = folder.path("none")}); });
  std::filesystem::remove(folder.path("a/1.png"));
  expect_contains(
      error_of(ErrorKind::kData, [&] { open_dataset({.kind = "folder", .root = folder.path()}); }),
      "at least one");
}

}  // namespace
}  // namespace sigma
