// Data sets of kind idx and cifar10, from files made here.
#include <gtest/gtest.h>
#include <torch/types.h>

#include "sigma/data/dataset.h"
#include "tests/data/testing.h"

namespace sigma {
namespace {

using testing::error_of;
using testing::expect_contains;

std::string bytes_of(const std::vector<int>& values) { return {values.begin(), values.end()}; }

TEST(IdxData, ImagesAndLabels) {
  const Scratch folder;
  folder.write("images",
               bytes_of({0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 10, 20, 30, 40}));
  folder.write("labels", bytes_of({0, 0, 8, 1, 0, 0, 0, 2, 3, 1}));
  const DataConfig config{
      .kind = "idx", .root = folder.path(), .images = "images", .labels = "labels"};
  const auto dataset = open_dataset(config);
  ASSERT_EQ(dataset->size(), 2);
  EXPECT_EQ(dataset->info().num_classes, 4);
  EXPECT_EQ(dataset->info().sample_shape, (std::vector<int64_t>{1, 1, 2}));
  const Sample sample = dataset->get(1);
  EXPECT_TRUE(sample.data.equal(torch::tensor({30, 40}, torch::kUInt8).view({1, 1, 2})));
  EXPECT_EQ(sample.label, 1);
  EXPECT_EQ(sample.id, "1");
  EXPECT_FALSE(has_test_split(config));
}

TEST(IdxData, InterleavedChannelsBecomePlanes) {
  const Scratch folder;
  const std::string file = folder.write(
      "images",
      bytes_of({0, 0, 8, 4, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6}));
  const auto dataset = open_dataset({.kind = "idx", .images = file});
  EXPECT_TRUE(
      dataset->get(0).data.equal(torch::tensor({1, 4, 2, 5, 3, 6}, torch::kUInt8).view({3, 1, 2})));
  EXPECT_EQ(dataset->get(0).label, -1);
  EXPECT_EQ(dataset->info().num_classes, 0);
}

TEST(IdxData, CountsThatDifferAreRefused) {
  const Scratch folder;
  folder.write("images", bytes_of({0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 10, 20}));
  folder.write("labels", bytes_of({0, 0, 8, 1, 0, 0, 0, 3, 3, 1, 0}));
  const std::string message = error_of(ErrorKind::kData, [&] {
    open_dataset({.kind = "idx", .root = folder.path(), .images = "images", .labels = "labels"});
  });
  expect_contains(message, "expected 2, one an image, got 3");
  expect_contains(message, "labels");
  error_of(ErrorKind::kData,
           [&] { open_dataset({.kind = "idx", .root = folder.path(), .images = "none"}); });
  error_of(ErrorKind::kUsage,
           [&] { open_dataset({.kind = "idx", .split = "test", .images = "images"}); });
  error_of(ErrorKind::kUsage, [&] { open_dataset({.kind = "idx"}); });
}

// Files of the exact size, nearly all zeros and so sparse on disk.
class Cifar10 : public ::testing::Test {
 protected:
  static constexpr int64_t kBytes = 30730000;
  static constexpr int64_t kRecord = 3073;

  void SetUp() override {
    for (const char* name : {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin",
                             "data_batch_4.bin", "data_batch_5.bin", "test_batch.bin"}) {
      folder_.write(name, "");
      std::filesystem::resize_file(folder_.path() / name, kBytes);
    }
  }
  void poke(const std::string& name, int64_t offset, const std::string& bytes) {
    std::fstream file(folder_.path() / name, std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(offset);
    file << bytes;
  }
  DataConfig config(const std::string& split) const {
    return {.kind = "cifar10", .split = split, .root = folder_.path()};
  }
  Scratch folder_;
};

TEST_F(Cifar10, RecordsAreALabelAndThreePlanes) {
  // Record 7 of the third file: label 9, R[0,1] = 11, G[1,0] = 22, B[31,31] = 33.
  poke("data_batch_3.bin", 7 * kRecord, "\x09");
  poke("data_batch_3.bin", 7 * kRecord + 1 + 1, "\x0b");
  poke("data_batch_3.bin", 7 * kRecord + 1 + 1024 + 32, "\x16");
  poke("data_batch_3.bin", 7 * kRecord + 1 + 3071, "\x21");
  const auto dataset = open_dataset(config("train"));
  ASSERT_EQ(dataset->size(), 50000);
  EXPECT_EQ(dataset->info().sample_shape, (std::vector<int64_t>{3, 32, 32}));
  EXPECT_EQ(dataset->info().class_names.at(9), "truck");
  const Sample sample = dataset->get(20007);
  EXPECT_EQ(sample.label, 9);
  torch::Tensor expected = torch::zeros({3, 32, 32}, torch::kUInt8);
  expected[0][0][1] = 11;
  expected[1][1][0] = 22;
  expected[2][31][31] = 33;
  EXPECT_TRUE(sample.data.equal(expected));
  EXPECT_EQ(dataset->get(20006).data.sum().item<int64_t>(), 0);
  EXPECT_EQ(open_dataset(config("test"))->size(), 10000);
}

TEST_F(Cifar10, WrongSizesAndLabelsAreRefused) {
  poke("test_batch.bin", 5 * kRecord, "\x0a");
  const std::string label = error_of(ErrorKind::kData, [&] { open_dataset(config("test")); });
  expect_contains(label, "expected [0, 10), got 10");
  expect_contains(label, "test_batch.bin, offset 15365");
  for (const int64_t bytes : {kBytes - 1, kBytes + 1}) {
    std::filesystem::resize_file(folder_.path("test_batch.bin"), static_cast<uintmax_t>(bytes));
    const std::string size = error_of(ErrorKind::kData, [&] { open_dataset(config("test")); });
    expect_contains(size, fmt::format("expected 30730000 bytes, got {}", bytes));
  }
  std::filesystem::remove(folder_.path("test_batch.bin"));
  expect_contains(error_of(ErrorKind::kData, [&] { open_dataset(config("test")); }),
                  "test_batch.bin");
  error_of(ErrorKind::kUsage, [] { open_dataset({.kind = "cifar10"}); });
}

}  // namespace
}  // namespace sigma
