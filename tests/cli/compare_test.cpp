// What compare ranks and refuses to rank, on run folders written by hand.
#include "sigma/cli/compare.h"

#include <gtest/gtest.h>

#include "sigma/base/error.h"
#include "tests/testing/errors.h"
#include "tests/testing/scratch.h"

namespace sigma {
namespace {

struct Measured {
  int64_t step = 100;
  double value = 1;
  std::string sha256 = "aa";
  int64_t count = 1000;
  std::string reference = "train";
  std::string metric = "fd_fashion_cnn";
  std::string ema = "main";
};

class Compare : public ::testing::Test {
 protected:
  // 100 steps of 8 images in 50 s, and its evaluations.
  std::string run(const std::string& name, int64_t seed, const std::vector<Measured>& measured,
                  const std::string& data = "d0", double lr = 1e-3, double seconds = 50) const {
    scratch_.write(name + "/config.toml",
                   fmt::format("task = \"classifier\"\n[train]\nseed = {}\nimages = 800\nbatch = "
                               "8\noptimizer = {{ lr = {} }}\n",
                               seed, lr));
    scratch_.write(name + "/run.json",
                   fmt::format(R"({{"run_id":"{}","data_sha256":"{}"}})", name, data));
    std::string log = R"({"t":1000,"event":"start","step":0,"flops_per_image":3})";
    for (const int step : {50, 100}) {
      const double t = 1000 + seconds * step / 100;
      log += fmt::format(
          "\n"
          R"({{"t":{},"event":"step","step":{},"images_seen":{},"loss":{}}})"
          "\n"
          R"({{"t":{},"event":"checkpoint","step":{}}})",
          t, step, 8 * step, 1.0 / step, t, step);
    }
    for (const Measured& m : measured) {
      log += "\n" + Json{{"t", 2000},
                         {"event", "eval"},
                         {"step", m.step},
                         {"images_seen", 8 * m.step},
                         {"weights_sha256", "w"},
                         {"ema", m.ema},
                         {"version", "0"},
                         {"git", "g"},
                         {"metrics", Json::array({MetricResult{.name = m.metric,
                                                               .value = m.value,
                                                               .extractor = "net",
                                                               .extractor_sha256 = m.sha256,
                                                               .reference = m.reference,
                                                               .n_reference = 60000,
                                                               .n_samples = m.count}
                                                      .to_json()})}}
                        .dump();
    }
    scratch_.write(name + "/log.jsonl", log + "\n");
    return scratch_.path(name).string();
  }

  std::string obstacle(const std::vector<std::string>& runs,
                       const std::string& at = "images") const {
    const Comparison c = compare_runs(runs, at);
    EXPECT_EQ(c.metrics.size(), 1u);
    EXPECT_EQ(c.metrics.at(0).obstacle.empty(), !c.metrics.at(0).ranks.empty());
    return c.metrics.at(0).obstacle;
  }

  Scratch scratch_;
};

TEST_F(Compare, SpreadOverSeedsAndRanks) {
  const std::vector<std::string> runs = {
      run("a0", 0, {{.value = 10}}), run("a1", 1, {{.value = 12}}), run("a2", 2, {{.value = 17}}),
      run("b", 0, {{.value = 9}}, "d0", 2e-3), run("none", 0, {}, "d0", 3e-3)};
  const Comparison c = compare_runs(runs, "images");
  ASSERT_EQ(c.groups.size(), 3u);
  EXPECT_EQ(c.groups[0].name, "a0, a1, a2");
  ASSERT_EQ(c.metrics.size(), 1u);
  const MetricRow& row = c.metrics[0];
  EXPECT_EQ(row.obstacle, "");
  EXPECT_DOUBLE_EQ(row.groups[0].mean, 13);
  EXPECT_DOUBLE_EQ(row.groups[0].deviation, std::sqrt(13.0));
  EXPECT_EQ(row.groups[0].count, 3);
  EXPECT_TRUE(std::isnan(row.groups[1].deviation));
  EXPECT_EQ(row.groups[2].count, 0);
  EXPECT_EQ(row.ranks, (std::vector<int64_t>{2, 1, 0}));
  EXPECT_EQ(c.common_cost, 800);
  EXPECT_EQ(c.losses, std::vector<double>(5, 0.01));
  ASSERT_EQ(c.settings.size(), 2u);
  EXPECT_EQ(c.settings[0].first, "train.optimizer.lr");
  // More is better for what is no distance.
  const auto better = [&](const std::string& metric) {
    const Comparison two = compare_runs({run("x", 0, {{.value = 1, .metric = metric}}),
                                         run("y", 0, {{.value = 2, .metric = metric}}, "d0", 2e-3)},
                                        "images");
    return two.metrics.at(0).ranks == std::vector<int64_t>{1, 2} ? "x" : "y";
  };
  EXPECT_EQ(better("energy_pixels"), "x");
  EXPECT_EQ(better("rfd_fashion_cnn"), "x");
  EXPECT_EQ(better("label_accuracy"), "y");
}

TEST_F(Compare, RefusesToRankAndSaysWhy) {
  const std::string a = run("a", 0, {{}});
  const auto against = [&](const Measured& m, const std::string& data = "d0") {
    return obstacle({a, run("b", 1, {m}, data)});
  };
  EXPECT_EQ(against({}), "");
  EXPECT_EQ(against({.sha256 = "bb"}), "extractor_sha256: aa and bb (a and b)");
  EXPECT_EQ(against({.count = 5000}), "n_samples: 1000 and 5000 (a and b)");
  EXPECT_EQ(against({.reference = "test"}), "reference: train and test (a and b)");
  EXPECT_EQ(against({}, "d1"), "data: d0 and d1 (a and b)");
  EXPECT_EQ(against({.step = 50}), "images: 800 and 400 (a and b)");
  EXPECT_EQ(against({.value = std::nan("")}), "no finite value (b)");
  // Each within 5 % of the first, but not of each other.
  const std::string less = run("less", 1, {{.step = 96}}), more = run("more", 2, {{.step = 104}});
  EXPECT_EQ(obstacle({a, less}), "");
  EXPECT_EQ(obstacle({a, more}), "");
  EXPECT_EQ(obstacle({a, less, more}), "images: 768 and 832 (less and more)");
  // Averaged and raw weights never meet in a row.
  EXPECT_EQ(compare_runs({a, run("b", 1, {{.ema = "none"}})}, "images").metrics.size(), 2u);
}

TEST_F(Compare, PicksTheMeasurementsNearestToACommonCost) {
  // b was measured halfway only, a twice: the halves are compared.
  const std::string a = run("a", 0, {{.step = 50, .value = 5}, {.step = 100, .value = 3}});
  const std::string b = run("b", 1, {{.step = 50, .value = 4}});
  for (const char* at : {"images", "flops", "seconds"}) {
    const Comparison c = compare_runs({a, b}, at);
    EXPECT_EQ(c.metrics.at(0).obstacle, "") << at;
    EXPECT_EQ(c.metrics.at(0).runs.at(0)->metric.value, 5) << at;
  }
  // The same images in twice the time.
  const std::string slow = run("slow", 1, {{}}, "d0", 1e-3, 100);
  EXPECT_EQ(obstacle({a, slow}), "");
  EXPECT_EQ(obstacle({a, slow}, "seconds"), "seconds: 50 and 100 (a and slow)");
  EXPECT_EQ(compare_runs({a, slow}, "seconds").common_cost, 50);
  // Measured again: the newer number stands.
  const std::string again = run("again", 1, {{.value = 7}, {.value = 8}});
  EXPECT_EQ(compare_runs({a, again}, "images").metrics.at(0).runs.at(1)->metric.value, 8);
}

TEST_F(Compare, RefusesWhatItCannotCompare) {
  const std::string a = run("a", 0, {{}});
  testing::expect_error(ErrorKind::kUsage, "each run once",
                        [&] { compare_runs({a, a + "/"}, "images"); });
  testing::expect_error(ErrorKind::kUsage, "nowhere",
                        [&] { compare_runs({a, "nowhere"}, "images"); });
  const std::string old = run("old", 1, {{}});
  scratch_.write("old/log.jsonl", R"({"t":1,"event":"start","step":0})"
                                  "\n"
                                  R"({"t":2,"event":"step","step":1,"images_seen":8})"
                                  "\n");
  EXPECT_EQ(compare_runs({a, old}, "images").common_cost, 8);
  testing::expect_error(ErrorKind::kUsage, "flops_per_image",
                        [&] { compare_runs({a, old}, "flops"); });
}

}  // namespace
}  // namespace sigma
