// Reports and comparisons of real runs: tiny ones, trained here.
#include <cmath>

#include "sigma/cli/plot_style.h"
#include "sigma/cli/report_parts.h"
#include "sigma/cli/svg_plot.h"
#include "sigma/io/images.h"
#include "sigma/train/run_log.h"
#include "tests/cli/program.h"
#include "tests/testing/event_reader.h"

namespace sigma {
namespace {

using nlohmann::json;

int count_of(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

// One file, no script, nothing from outside: all that a browser could load is a data URI.
void expect_closed(const std::string& html) {
  EXPECT_CONTAINS(html, "default-src 'none'; style-src 'unsafe-inline'; img-src data:");
  for (const char* part : {"<script", "http:", "https:", "href", "url(", "@import", "<link",
                           "<iframe", "onload", "<object", "srcset"})
    EXPECT_EQ(count_of(html, part), 0) << part;
  EXPECT_EQ(count_of(html, "src="), count_of(html, "src=\"data:image/png;base64,"));
}

class Reports : public ::testing::Test {
 protected:
  Reports() : p("reports") {
    p.write_data();
    p.write_recipe();
  }

  void train(const std::string& run, const std::vector<std::string>& set = {}) const {
    std::vector<std::string> arguments = {"train", "tiny.toml", "--run",
                                          run,     "--set",     "train.images=320"};
    for (const std::string& assignment : set) {
      arguments.emplace_back("--set");
      arguments.push_back(assignment);
    }
    const Finished r = p.run(arguments);
    ASSERT_EQ(r.exit, 0) << r.err;
  }

  json eval(const std::string& run, const std::string& count = "32",
            const std::string& seed = "1000") const {
    const Finished r = p.run({"eval", run, "--metrics", "energy_pixels", "--count", count, "--seed",
                              seed, "--steps", "1,2", "--json"});
    EXPECT_EQ(r.exit, 0) << r.err;
    return json::parse(r.out).at("result");
  }

  json compare(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), "compare");
    arguments.emplace_back("--json");
    const Finished r = p.run(arguments);
    EXPECT_EQ(r.exit, 0) << r.err;
    return json::parse(r.out).at("result");
  }

  Program p;
};

TEST_F(Reports, TheSameRunGivesTheSamePageAndNothingUnescaped) {
  const std::string run = "runs/<script>alert('&\")";
  train(run);
  eval(run);
  eval(run, "32", "1001");
  eval(run, "16");
  std::ofstream(p.folder / run / "log.jsonl", std::ios::app)
      << R"({"t":1,"event":"<script>x","message":"</pre><script>y"})"
      << "\n"
      << R"({"t":1e300,"event":"late"})" << "\nbroken\n";
  ASSERT_EQ(p.run({"sample", run, "-o", run + "/samples/mine.png", "--count", "8"}).exit, 0);
  ASSERT_EQ(p.run({"report", run}).exit, 0);
  ASSERT_EQ(p.run({"report", run, "-o", "again.html"}).exit, 0);
  const std::string html = read_file(p.folder / run / "report.html");
  EXPECT_EQ(html, read_file(p.folder / "again.html"));
  EXPECT_EQ(html, p.run({"report", run, "-o", "-"}).out);
  EXPECT_EQ(p.run({"report", run, "-o", "again.html"}).exit, 2);  // a file exists
  expect_closed(html);

  EXPECT_CONTAINS(html, "<h1>&lt;script&gt;alert(&#39;&amp;&quot;)</h1>");
  EXPECT_CONTAINS(html, "&lt;script&gt;y");
  EXPECT_CONTAINS(html, "<td class=\"n\">-</td><td>late</td>");  // a time that no calendar has
  EXPECT_CONTAINS(html, "40 of 40 steps, 320 images; finished");
  EXPECT_CONTAINS(html, "1 broken lines passed over");
  EXPECT_CONTAINS(html, "train tiny.toml --run &#39;runs/&lt;script&gt;");
  EXPECT_CONTAINS(html, "hidden_size = 16");
  EXPECT_CONTAINS(html, "samples/mine.png: 8 images, seed 0");
  EXPECT_CONTAINS(html, "step 40: 16 images, seed 0");
  // Two noise seeds are one row; another count stands apart.
  EXPECT_CONTAINS(html, "<td class=\"n\">2</td>");
  EXPECT_CONTAINS(html, "not comparable: n_samples: 32 and 16");
  for (const std::string& name : read_run_log(p.folder / run).names()) {
    if (!name.starts_with("losses/")) EXPECT_CONTAINS(html, "<figcaption>" + name);
  }
}

TEST_F(Reports, ComparisonsRankOnlyWhatIsComparable) {
  train("runs/a");
  train("runs/b", {"train.seed=1"});
  train("runs/wide", {"generator.trunk.hidden_size=32"});
  std::vector<double> value;
  for (const char* run : {"runs/a", "runs/b", "runs/wide"})
    value.push_back(eval(run).at("rows").at(1).at("metrics").at(0).at("value").get<double>());

  const json all = compare({"a", "b", "wide", "--html", "c.html"});
  EXPECT_EQ(all.at("groups"), json::parse(R"([["a", "b"], ["wide"]])"));
  std::vector<std::string> keys;
  for (const auto& setting : all.at("settings")) keys.push_back(setting.at("key"));
  EXPECT_EQ(keys, (std::vector<std::string>{"generator.trunk.hidden_size", "train.seed"}));
  const json two_steps = all.at("metrics").at(1);
  EXPECT_EQ(two_steps.at("setting"), "steps 2, guidance 1");
  const json seeds = two_steps.at("groups").at(0);
  EXPECT_EQ(seeds.at("count"), 2);
  EXPECT_DOUBLE_EQ(seeds.at("mean"), (value[0] + value[1]) / 2);
  EXPECT_NEAR(seeds.at("deviation"), std::abs(value[0] - value[1]) / std::sqrt(2), 1e-12);
  const bool wide_is_better = value[2] < (value[0] + value[1]) / 2;
  EXPECT_EQ(seeds.at("rank"), wide_is_better ? 2 : 1);
  EXPECT_EQ(two_steps.at("groups").at(1).at("rank"), wide_is_better ? 1 : 2);
  const std::string html = read_file(p.folder / "c.html");
  expect_closed(html);
  EXPECT_EQ(count_of(html, "<img "), 3);

  // Padding is the recipe's: the images are the same.
  train("runs/padded", {"data.pad=2"});
  const json padded = compare({"a", "padded"});
  EXPECT_EQ(padded.at("runs").at(0).at("data_sha256"), padded.at("runs").at(1).at("data_sha256"));
  const std::string page = p.run({"report", "runs/padded", "-o", "-"}).out;
  EXPECT_CONTAINS(page, "SHA-256 of the images");
  EXPECT_CONTAINS(page, padded.at("runs").at(1).at("data_sha256").get<std::string>());
  EXPECT_CONTAINS(page, "SHA-256 as trained on");

  // The wider network does more for the same images; time is never quite equal.
  const json flops = compare({"a", "wide", "--at", "flops"});
  EXPECT_GT(flops.at("runs").at(1).at("flops"), flops.at("runs").at(0).at("flops"));
  EXPECT_EQ(flops.at("common"), flops.at("runs").at(0).at("flops"));
  EXPECT_CONTAINS(flops.at("metrics").at(0).at("not_comparable").get<std::string>(), "flops: ");
  EXPECT_GT(compare({"a", "b", "--at", "seconds"}).at("common"), 0);

  // A log that cannot be written costs no result.
  fs::remove(p.folder / "runs/wide/log.jsonl");
  fs::create_directory(p.folder / "runs/wide/log.jsonl");
  EXPECT_EQ(eval("runs/wide").at("rows").at(1).at("metrics").at(0).at("value"), value[2]);
  EXPECT_CONTAINS(read_file(p.folder / "stderr"), "warning: the result is not in the run's log");
}

TEST_F(Reports, TrainingWritesWhatTensorBoardReads) {
  train("runs/a");
  const auto read = testing::read_event_folder(p.folder / "runs/a/events");
  EXPECT_EQ(read.skipped, 0);
  EXPECT_FALSE(read.torn);
  EXPECT_EQ(read.events.at(0).file_version, "brain.Event:2");
  std::map<int64_t, std::map<std::string, double>> scalars;
  std::string config, png;
  for (const auto& event : read.events) {
    for (const auto& value : event.values) {
      if (value.scalar) scalars[event.step][value.tag] = *value.scalar;
      if (value.plugin == "text") config = value.text;
      if (value.tag == "samples" && event.step == 40) png = value.png;
    }
  }
  EXPECT_CONTAINS(config, "hidden_size = 16");
  // The grid says how to make it again.
  EXPECT_EQ(p.run({"regenerate", "runs/a/samples/step-0000040.png"}).exit, 0);
  const Image grid = decode_image(png, "samples");  // 4 rows of 4 labels, doubled, gaps of 2
  EXPECT_EQ(grid.width, 4 * 16 + 3 * 2);
  EXPECT_EQ(png, read_file(p.folder / "runs/a/samples/step-0000040.png"));
  const RunLog log = read_run_log(p.folder / "runs/a");
  ASSERT_EQ(log.steps.size(), 4u);
  for (const LogStep& step : log.steps) {
    auto expected = step.values;
    expected["images_seen"] = step.cost.images;
    auto& found = scalars[step.cost.step];
    ASSERT_EQ(found.size(), expected.size()) << step.cost.step;
    for (const auto& [name, value] : expected)
      EXPECT_EQ(static_cast<float>(found.at(name)), static_cast<float>(value)) << name;
  }
}

TEST(Plot, TicksAreRoundNumbers) {
  using Ticks = std::vector<double>;
  EXPECT_EQ(plot_ticks(0, 10, false, 5), (Ticks{0, 2, 4, 6, 8, 10}));
  EXPECT_EQ(plot_ticks(-0.3, 0.7, false, 6).front(), -0.2);
  EXPECT_EQ(plot_ticks(0, 4.2e6, false, 6), (Ticks{0, 1e6, 2e6, 3e6, 4e6}));
  EXPECT_EQ(plot_ticks(0.9, 60, true, 6), (Ticks{1, 2, 5, 10, 20, 50}));
  EXPECT_EQ(plot_ticks(1e-3, 1e3, true, 6), (Ticks{1e-3, 1e-2, 1e-1, 1, 10, 100, 1000}));
  EXPECT_EQ(plot_ticks(3.2, 4.6, true, 6), (Ticks{3.5, 4, 4.5}));  // between 2 and 5
  EXPECT_LE(plot_ticks(1, std::nextafter(1, 2), false, 6).size(), 13u);
}

TEST(Plot, DecimationKeepsPeaksAndGaps) {
  Series series{.name = "s", .x = {}, .y = {}};
  for (int i = 0; i < 100'000; ++i) {
    series.x.push_back(i);
    series.y.push_back(i == 50'001 ? 9 : i == 70'003 ? -9 : std::sin(i));
  }
  series.y[12'345] = std::nan("");
  const Series few = decimate(series, 2000);
  EXPECT_LE(few.x.size(), 2000u);
  EXPECT_TRUE(std::is_sorted(few.x.begin(), few.x.end()));
  EXPECT_EQ(std::count_if(few.y.begin(), few.y.end(), [](double v) { return std::isnan(v); }), 1);
  EXPECT_EQ(std::count(few.y.begin(), few.y.end(), 9.0), 1);
  EXPECT_EQ(std::count(few.y.begin(), few.y.end(), -9.0), 1);
  EXPECT_EQ(decimate(few, 2000).x, few.x);
}

TEST(Plot, BreaksTheLineWhereThereIsNoNumber) {
  const double nan = std::nan("");
  const Series s{.name = "a<b", .x = {1, 2, 3, 4, 5, 6}, .y = {1, 2, nan, 10, nan, 100}};
  const Series t{.name = "t", .x = {1, 6}, .y = {1, 100}};
  const std::string linear = SvgPlot{.title = "<t>", .x_label = "x", .series = {s, t}}.html();
  const size_t end = linear.find("\" fill=\"none\" stroke=\"#0072B2\"");
  const size_t begin = linear.rfind('"', end - 1) + 1;
  const std::string path = linear.substr(begin, end - begin);
  EXPECT_EQ(std::count(path.begin(), path.end(), 'M'), 3) << path;
  EXPECT_EQ(std::count(path.begin(), path.end(), 'L'), 1) << path;
  EXPECT_CONTAINS(linear, "&lt;t&gt;");
  EXPECT_CONTAINS(linear, "a&lt;b");
  EXPECT_CONTAINS(linear, "#0072B2");
  EXPECT_CONTAINS(linear, "stroke-dasharray=\"6 2\"");
  EXPECT_CONTAINS(linear, "<td class=\"n\">-</td>");  // in the table
  // Log-log: margins of 4 % of the height above and below.
  const std::string log =
      SvgPlot{.title = "", .x_label = "x", .series = {t}, .log_x = true, .log_y = true}.html();
  EXPECT_CONTAINS(log, "M60.00 183.33L370.00 16.67");
  EXPECT_CONTAINS(SvgPlot{}.html(), "No finite value");
  EXPECT_CONTAINS((SvgPlot{.series = {{"n", {1, 2}, {nan, -1}}}, .log_y = true}.html()),
                  "No finite value");
  // Costs that are not known have no place, in the table neither.
  const std::string unknown =
      SvgPlot{.title = "", .x_label = "x", .series = {{"u", {nan, 1, INFINITY, 2}, {7, 8, 7, 9}}}}
          .html();
  EXPECT_CONTAINS(unknown, "<td class=\"n\">8</td>");
  EXPECT_FALSE(contains(unknown, "<td class=\"n\">7</td>"));
  EXPECT_FALSE(contains(unknown, "nan") || contains(unknown, "inf"));
  RunLog costs;
  for (const double flops : {nan, 5.0})
    costs.steps.push_back({.cost = {.flops = flops}, .values = {{"loss", 1}}});
  EXPECT_EQ(curve_of(costs, "loss", "flops", "u").x, std::vector<double>{5});
  EXPECT_TRUE(wants_log({t}));
  EXPECT_FALSE(wants_log({{"zero", {1, 2}, {0, 100}}}));
}

}  // namespace
}  // namespace sigma
