#include "sigma/metrics/metric.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "sigma/base/error.h"
#include "tests/testing/errors.h"
#include "tests/testing/scratch.h"

namespace sigma {
namespace {

MetricResult example() {
  return {.name = "fd",
          .value = 1.5,
          .extractor = "net",
          .extractor_sha256 = "ab",
          .reference = "fashion train",
          .n_reference = 60000,
          .n_samples = 10000,
          .floor = NAN};
}

TEST(Metric, ComparesOnlyEqualProvenance) {
  MetricResult other = example();
  other.value = 2;
  other.floor = 0.1;
  EXPECT_EQ(incomparable(example(), other), "");

  const auto refused = [](auto change, const char* reason) {
    MetricResult changed = example();
    change(changed);
    EXPECT_EQ(incomparable(example(), changed), reason);
  };
  refused([](MetricResult& m) { m.name = "kid"; }, "name: fd and kid");
  refused([](MetricResult& m) { m.extractor = "other"; }, "extractor: net and other");
  refused([](MetricResult& m) { m.extractor_sha256 = "cd"; }, "extractor_sha256: ab and cd");
  refused([](MetricResult& m) { m.reference = "test"; }, "reference: fashion train and test");
  refused([](MetricResult& m) { m.n_reference = 1; }, "n_reference: 60000 and 1");
  refused([](MetricResult& m) { m.n_samples = 5; }, "n_samples: 10000 and 5");
}

TEST(Metric, JsonKeepsTheProvenance) {
  const std::string text = example().to_json().dump();
  EXPECT_EQ(
      text,
      R"({"name":"fd","value":1.5,"extractor":"net","extractor_sha256":"ab","reference":"fashion train",)"
      R"("n_reference":60000,"n_samples":10000,"floor":null})");
  EXPECT_EQ(MetricResult::from_json(Json::parse(text)).to_json().dump(), text);
  testing::expect_error(ErrorKind::kData, "value",
                        [] { MetricResult::from_json(Json::parse(R"({"name":"fd"})")); });
}

TEST(Metric, Bounds) {
  MetricsConfig config;
  read_config(visit_of(config), {{"n_samples", 500}}, "test");
  EXPECT_EQ(config.n_samples, 500);
  EXPECT_THROW(read_config(visit_of(config), {{"n_samples", 1}}, "test"), Error);
}

TEST(Assets, TheChosenFolderComesFirst) {
  namespace fs = std::filesystem;
  const Scratch scratch;
  const std::string folder = scratch.path().string();
  const std::string name = fmt::format("test-asset-{}.bin", getpid());
  const fs::path beside = fs::path(SIGMA_BINARY_DIR) / "assets";
  scratch.write(name, "chosen");
  const bool made = fs::create_directories(beside);
  std::ofstream(beside / name) << "beside";

  ASSERT_EQ(setenv("SIGMA_ASSETS", folder.c_str(), 1), 0);
  EXPECT_EQ(find_asset(name), folder + "/" + name);
  fs::remove(scratch.path(name));
  EXPECT_EQ(find_asset(name), (fs::canonical(beside) / name).string());
  fs::remove(beside / name);
  if (made) fs::remove(beside);
  try {
    find_asset(name);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    EXPECT_NE(std::string(error.what()).find(folder), std::string::npos) << error.what();
  }
  unsetenv("SIGMA_ASSETS");
}

}  // namespace
}  // namespace sigma
