#include "sigma/data/dataset.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>

#include "sigma/base/sha256.h"
#include "sigma/data/check.h"
#include "sigma/data/readers.h"
#include "tests/data/testing.h"

namespace sigma {
namespace {

using testing::error_of;
using testing::expect_contains;
using testing::png;

TEST(Pixels, AllBytesSurviveTheRoundTrip) {
  const torch::Tensor bytes = torch::arange(256, torch::kUInt8).view({1, 1, 16, 16});
  const torch::Tensor x = to_float(bytes);
  EXPECT_EQ(x.scalar_type(), torch::kFloat);
  for (int k = 0; k < 256; ++k) {
    EXPECT_EQ(x.flatten()[k].item<float>(), static_cast<float>(k) / 127.5f - 1.0f) << k;
  }
  EXPECT_TRUE(to_bytes(x).equal(bytes));
}

TEST(Pixels, ToBytesClipsAndRefusesNonFinite) {
  const torch::Tensor x = torch::tensor({-1e9f, -1.01f, 0.0f, 1.01f, 1e9f});
  EXPECT_TRUE(to_bytes(x).equal(torch::tensor({0, 0, 128, 255, 255}, torch::kUInt8)));
  for (const float value : {NAN, INFINITY}) {
    error_of(ErrorKind::kNonFinite, [&] { to_bytes(torch::tensor({0.0f, value})); });
  }
}

TEST(Pixels, ImagesAndTensors) {
  Image image{.height = 1, .width = 2, .channels = 3, .pixels = {1, 2, 3, 4, 5, 6}};
  const torch::Tensor planes = from_image(image);
  EXPECT_TRUE(planes.equal(torch::tensor({1, 4, 2, 5, 3, 6}, torch::kUInt8).view({3, 1, 2})));
  const Image back = to_image(planes);
  EXPECT_EQ(back.pixels, image.pixels);
  EXPECT_EQ(back.height, 1);
  EXPECT_EQ(back.width, 2);
  EXPECT_EQ(back.channels, 3);
  error_of(ErrorKind::kUsage, [] { to_image(torch::zeros({1, 2, 2})); });
  error_of(ErrorKind::kUsage, [] { to_image(torch::zeros({2, 2, 2}, torch::kUInt8)); });
}

TEST(DataHash, CoversIdsLabelsPixelsAndOrder) {
  const torch::Tensor data = torch::tensor({1, 2, 3, 4}, torch::kUInt8).view({2, 1, 1, 2});
  const auto hash = [&](const torch::Tensor& pixels, std::vector<int64_t> labels,
                        std::vector<std::string> ids) {
    return data_hash(MemoryDataset(pixels, std::move(labels), std::move(ids), {}));
  };
  // The definition, spelled out: id, NUL, label, digest.
  std::string stream;
  for (int i = 0; i < 2; ++i) {
    stream += std::string(i == 0 ? "x" : "y") + '\0' +
              (i == 0 ? std::string("\x05\0\0\0", 4) : std::string(4, '\xff'));
    const char pixels[2] = {static_cast<char>(2 * i + 1), static_cast<char>(2 * i + 2)};
    Sha256 digest;
    digest.update(pixels, 2);
    for (const uint8_t byte : digest.digest()) stream += static_cast<char>(byte);
  }
  const std::string expected = sha256_hex(stream);
  EXPECT_EQ(hash(data, {5, -1}, {"x", "y"}), expected);
  EXPECT_NE(hash(data, {5, 0}, {"x", "y"}), expected);
  EXPECT_NE(hash(data, {5, -1}, {"x", "z"}), expected);
  EXPECT_NE(hash(data.flip(0), {5, -1}, {"x", "y"}), expected);
}

TEST(DataConfig, OnlyPathsAndThreadsAreRuntimeKeys) {
  DataConfig config;
  const Role runtime = Role::kRuntime;
  const Json keys = write_config(visit_of(config), &runtime);
  EXPECT_EQ(keys, (Json{{"root", ""}, {"threads", 1}, {"prefetch", 4}}));
}

TEST(DataConfig, AKindHasItsOwnKeysAndBounds) {
  const auto read = [](const Json& tree) {
    DataConfig config;
    read_config(visit_of(config), tree, "test");
    return config;
  };
  EXPECT_EQ(read({{"kind", "folder"}, {"size", 32}, {"test_fraction", 0.5}}).size, 32);
  error_of(ErrorKind::kUsage, [&] { read({{"kind", "fashion"}, {"size", 32}}); });
  error_of(ErrorKind::kUsage, [&] { read({{"kind", "folder"}, {"images", "x"}}); });
  error_of(ErrorKind::kUsage, [&] { read({{"kind", "folder"}, {"test_fraction", 0.51}}); });
  error_of(ErrorKind::kUsage, [&] { read({{"kind", "mnist"}}); });
  error_of(ErrorKind::kUsage, [&] { read({{"pad", 9}}); });
  error_of(ErrorKind::kUsage, [&] { read({{"prefetch", 0}}); });
}

TEST(Readers, EveryKindIsListed) {
  std::vector<std::string> kinds;
  for (const DataReader& reader : list_readers()) {
    kinds.push_back(reader.kind);
    EXPECT_EQ(reader.usable, reader.kind.ends_with("fashion") &&
                                 std::filesystem::exists("/usr/share/datasets/fashion-mnist"));
  }
  EXPECT_EQ(kinds,
            (std::vector<std::string>{"fashion", "moving_fashion", "idx", "cifar10", "folder"}));
  error_of(ErrorKind::kUsage, [] { open_dataset({.kind = "mnist"}); });
  error_of(ErrorKind::kUsage, [] { open_dataset({.split = "val"}); });
}

TEST(Check, DuplicatesBadFilesAndMoments) {
  const Scratch folder;
  folder.write("train/a/1.png", png(2, 2, 1, 0));
  folder.write("train/a/2.png", png(2, 2, 1, 255));
  folder.write("train/b/3.png", png(2, 2, 1, 0));
  folder.write("train/b/4.png", "broken");
  folder.write("test/a/5.png", png(2, 2, 1, 255));
  folder.write("test/a/6.png", png(2, 2, 1, 7));
  folder.write("test/a/7.png", "broken");
  const DataConfig config{.kind = "folder", .root = folder.path()};
  const DataReport report = check_data(config);
  EXPECT_EQ(report.count, 3);
  EXPECT_EQ(report.sample_shape, (std::vector<int64_t>{1, 2, 2}));
  EXPECT_EQ(report.class_counts, (std::vector<int64_t>{2, 1}));
  // Values 0, 1, 0: mean 1/3, variance 1/3 - 1/9.
  EXPECT_NEAR(report.mean, 1.0 / 3, 1e-15);
  EXPECT_NEAR(report.std, std::sqrt(2.0) / 3, 1e-15);
  EXPECT_EQ(report.duplicates_within, 1);
  EXPECT_EQ(report.duplicates_across, 1);
  ASSERT_EQ(report.duplicate_pairs.size(), 2u);
  EXPECT_EQ(report.duplicate_pairs[0].first, "train:train/a/1.png");
  EXPECT_EQ(report.duplicate_pairs[0].second, "train:train/b/3.png");
  EXPECT_EQ(report.duplicate_pairs[1].first, "train:train/a/2.png");
  EXPECT_EQ(report.duplicate_pairs[1].second, "test:test/a/5.png");
  EXPECT_FALSE(report.good());
  ASSERT_EQ(report.bad.size(), 2u);
  EXPECT_EQ(report.bad[0].id, "train/b/4.png");
  EXPECT_EQ(report.bad[1].id, "test/a/7.png");
  EXPECT_EQ(report.data_hash, data_hash(*scan_folder(config).dataset));

  const Json json = report.to_json();
  EXPECT_EQ(json["classes"][1]["name"], "b");
  EXPECT_EQ(json["classes"][1]["count"], 1);
  EXPECT_EQ(json["duplicates"]["pairs"][1][1], "test:test/a/5.png");
  EXPECT_EQ(json["bad"][0]["id"], "train/b/4.png");
  expect_contains(report.to_text(), "1 within the split, 1 across splits");
  expect_contains(report.to_text(), "train/b/4.png: ");
  EXPECT_EQ(report.bad[0].reason.find("train/b/4.png"), std::string::npos) << report.bad[0].reason;
}

TEST(Check, AnUnusableFolderIsListed) {
  const Scratch folder;
  const DataReport report = check_data({.kind = "folder", .root = folder.path("none")});
  EXPECT_FALSE(report.good());
  EXPECT_EQ(report.count, 0);
  error_of(ErrorKind::kUsage, [&] { check_data({.kind = "folder"}); });
}

// One pixel a sample: grids of gap 1 are easy to read.
MemoryDataset dots(const std::vector<int>& values, std::vector<int64_t> labels, int64_t classes) {
  const auto count = static_cast<int64_t>(values.size());
  return {torch::tensor(values, torch::kUInt8).view({count, 1, 1, 1}),
          std::move(labels),
          {},
          {.num_classes = classes}};
}

TEST(ContactSheet, RowsAreClasses) {
  const Image sheet = contact_sheet(dots({10, 20, 30, 40, 50}, {1, 0, 1, 1, 0}, 3), 2);
  ASSERT_EQ(sheet.channels, 1);
  const auto cell = [&](int64_t row, int64_t column) {
    // Cells are one pixel and one gap apart, wherever the outer border is.
    const int64_t border = (sheet.width - 3) / 2;
    return sheet
        .pixels[static_cast<size_t>((border + 2 * row) * sheet.width + border + 2 * column)];
  };
  EXPECT_EQ(cell(0, 0), 20);
  EXPECT_EQ(cell(0, 1), 50);
  EXPECT_EQ(cell(1, 0), 10);
  EXPECT_EQ(cell(1, 1), 30);
  EXPECT_EQ(cell(2, 0), 255);  // class 2 has no sample
}

TEST(ContactSheet, WithoutLabelsItIsASquare) {
  const Image sheet = contact_sheet(dots({1, 2, 3, 4, 5}, {}, 0), 2);
  EXPECT_EQ(sheet.width, sheet.height);
  EXPECT_EQ(std::count(sheet.pixels.begin(), sheet.pixels.end(), 4), 1);
  EXPECT_EQ(std::count(sheet.pixels.begin(), sheet.pixels.end(), 5), 0);
  error_of(ErrorKind::kUsage, [] { contact_sheet(dots({1}, {}, 0), 0); });
}

}  // namespace
}  // namespace sigma
