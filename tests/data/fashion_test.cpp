#include <gtest/gtest.h>
#include <torch/types.h>

#include <set>

#include "sigma/data/check.h"
#include "sigma/data/dataset.h"
#include "tests/data/testing.h"

namespace sigma {
namespace {

using testing::error_of;
using testing::expect_contains;

constexpr const char* kFolder = "/usr/share/datasets/fashion-mnist";

class Fashion : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(kFolder))
      GTEST_SKIP() << "the Debian package dataset-fashion-mnist is not installed";
  }
};

struct Facts {
  int64_t size;
  int64_t pixel_sum;
  std::vector<int64_t> first_labels;
};

void expect_facts(const std::string& split, const Facts& facts) {
  const auto dataset = open_dataset({.split = split});
  ASSERT_EQ(dataset->size(), facts.size);
  EXPECT_EQ(dataset->info().sample_shape, (std::vector<int64_t>{1, 28, 28}));
  EXPECT_EQ(dataset->info().num_classes, 10);
  int64_t sum = 0;
  std::vector<int64_t> first;
  for (int64_t i = 0; i < dataset->size(); ++i) {
    const Sample sample = dataset->get(i);
    const auto* pixels = sample.data.data_ptr<uint8_t>();
    for (int64_t k = 0; k < 28 * 28; ++k) sum += pixels[k];
    if (i < 5) first.push_back(sample.label);
  }
  EXPECT_EQ(sum, facts.pixel_sum);
  EXPECT_EQ(first, facts.first_labels);
}

TEST_F(Fashion, Train) { expect_facts("train", {60000, 3431114169, {9, 0, 0, 3, 0}}); }
TEST_F(Fashion, Test) { expect_facts("test", {10000, 573469082, {9, 2, 1, 1, 6}}); }

TEST_F(Fashion, Description) {
  EXPECT_EQ(open_dataset({.split = "test"})->info().description,
            "Fashion-MNIST, 10,000 test images 1x28x28");
  EXPECT_TRUE(has_test_split({}));
}

TEST_F(Fashion, MovingClips) {
  const auto clips = open_dataset({.kind = "moving_fashion", .split = "test", .frames = 12});
  const auto images = open_dataset({.split = "test"});
  EXPECT_EQ(clips->info().description, "moving Fashion-MNIST, 10,000 test images 1x12x28x28");
  ASSERT_EQ(clips->size(), images->size());
  std::set<std::pair<int64_t, int64_t>> starts;
  for (int64_t i = 0; i < 40; ++i) {
    const Sample clip = clips->get(i);
    const Sample image = images->get(i);
    EXPECT_EQ(clip.label, image.label);
    ASSERT_EQ(clip.data.sizes(), (std::vector<int64_t>{1, 12, 28, 28}));
    EXPECT_TRUE(torch::equal(clip.data, clips->get(i).data));
    // Every frame holds the whole image at half size, somewhere else than the frame before.
    const torch::Tensor half = image.data.to(torch::kFloat).view({14, 2, 14, 2}).mean({1, 3});
    const int64_t mass = (half + 0.5f).to(torch::kUInt8).to(torch::kInt64).sum().item<int64_t>();
    torch::Tensor before;
    for (int64_t f = 0; f < 12; ++f) {
      const torch::Tensor frame = clip.data[0][f];
      EXPECT_EQ(frame.to(torch::kInt64).sum().item<int64_t>(), mass) << i << " " << f;
      if (before.defined()) EXPECT_FALSE(torch::equal(before, frame)) << i << " " << f;
      before = frame;
    }
    const torch::Tensor first = clip.data[0][0].nonzero();
    starts.emplace(first.select(1, 0).min().item<int64_t>(),
                   first.select(1, 1).min().item<int64_t>());
  }
  EXPECT_GT(starts.size(), 20u);
  EXPECT_EQ(to_image(clips->get(0).data).width, 12 * 28);
}

TEST_F(Fashion, Report) {
  const DataReport report = check_data({});
  EXPECT_TRUE(report.good());
  EXPECT_EQ(report.count, 60000);
  EXPECT_EQ(report.class_counts, std::vector<int64_t>(10, 6000));
  // The published digits: half a unit of the last one.
  EXPECT_NEAR(report.mean, 0.2860406, 5e-8);
  EXPECT_NEAR(report.std, 0.3530242, 5e-8);
  EXPECT_EQ(report.duplicates_within, 0);
  EXPECT_EQ(report.duplicates_across, 0);
  // Computed independently with Python's gzip and hashlib.
  EXPECT_EQ(report.data_hash, "54ad7f9817e9e9410c1f3ce6842428b53d47575421353e9f9c88a026440db09c");
}

TEST_F(Fashion, TestReport) {
  const DataReport report = check_data({.split = "test"});
  EXPECT_TRUE(report.good());
  EXPECT_EQ(report.class_counts, std::vector<int64_t>(10, 1000));
  EXPECT_EQ(report.data_hash, "ecd0ece927ce71b352968edb134e8271bcf5b4dbd8866f7ef1a9d80b66c1a059");
}

TEST_F(Fashion, Padding) {
  const auto plain = open_dataset({.split = "test"});
  const auto padded = open_dataset({.split = "test", .pad = 2});
  EXPECT_EQ(padded->info().sample_shape, (std::vector<int64_t>{1, 32, 32}));
  const torch::Tensor image = padded->get(7).data;
  EXPECT_TRUE(image.slice(1, 2, 30).slice(2, 2, 30).equal(plain->get(7).data));
  EXPECT_EQ(image.sum().item<int64_t>(), plain->get(7).data.sum().item<int64_t>());
}

TEST_F(Fashion, ChangedFileIsRefused) {
  const Scratch folder;
  std::filesystem::copy(std::string(kFolder) + "/t10k-images-idx3-ubyte.gz",
                        folder.path("t10k-images-idx3-ubyte.gz"));
  // A valid file of 10,000 zero labels, decompressed: accepted as a format, refused by its hash.
  folder.write("t10k-labels-idx1-ubyte",
               std::string("\0\0\x08\x01\0\0\x27\x10", 8) + std::string(10000, '\0'));
  const std::string message =
      error_of(ErrorKind::kData, [&] { open_dataset({.split = "test", .root = folder.path()}); });
  expect_contains(message,
                  "SHA-256 0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34");
  expect_contains(message, "t10k-labels-idx1-ubyte");
  expect_contains(message, "dataset-fashion-mnist");
}

TEST(FashionMissing, NamesThePackage) {
  const Scratch folder;
  const std::string message =
      error_of(ErrorKind::kData, [&] { open_dataset({.root = folder.path()}); });
  expect_contains(message, "dataset-fashion-mnist");
  expect_contains(message, "train-images-idx3-ubyte.gz");
  const DataReport report = check_data({.root = folder.path()});
  EXPECT_FALSE(report.good());
  expect_contains(report.to_text(), "train-images-idx3-ubyte.gz");
}

}  // namespace
}  // namespace sigma
