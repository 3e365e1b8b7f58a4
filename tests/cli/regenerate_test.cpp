// Images repeat from their records, and sweeps measure what eval measures.
#include <memory>

#include "sigma/io/images.h"
#include "tests/cli/program.h"

namespace sigma {
namespace {

using nlohmann::json;

class Regenerate : public ::testing::Test {
 protected:
  // The run is the same for all tests.
  static void SetUpTestSuite() {
    shared = std::make_unique<Program>("regenerate");
    shared->write_data();
    shared->write_recipe("tiny.toml", "[generator.sampler]\nkind = \"restart\"\nsteps = 2\n");
    ASSERT_EQ(shared->run({"train", "tiny.toml", "--set", "train.images=160"}).exit, 0);
  }
  static void TearDownTestSuite() { shared.reset(); }

  // The result, and the exit code that must come with it.
  json regenerate(std::vector<std::string> arguments, int exit) const {
    arguments.insert(arguments.begin(), "regenerate");
    arguments.emplace_back("--json");
    const Finished r = p.run(arguments);
    EXPECT_EQ(r.exit, exit) << r.err;
    const json out = json::parse(r.out);
    EXPECT_EQ(out.at("ok"), exit == 0);
    return out.contains("result") ? out.at("result") : out.at("error");
  }
  std::string bytes(const std::string& name) const { return read_file(p.folder / name); }

  const Program& p = *shared;
  static std::unique_ptr<Program> shared;
};
std::unique_ptr<Program> Regenerate::shared;

TEST_F(Regenerate, TheSameBuildGivesTheSameFile) {
  // Passes of 3 images over labels in runs of 2; a grid under guidance; images of one label.
  ASSERT_EQ(p.run({"sample", "runs/tiny", "-o", "one/", "--count", "8", "--batch", "3"}).exit, 0);
  ASSERT_EQ(p.run({"sample", "runs/tiny", "-o", "grid.png", "--guidance", "1.5", "--seed", "3",
                   "--first", "5"})
                .exit,
            0);
  ASSERT_EQ(p.run({"sample", "runs/tiny", "-o", "raw.png", "--ema", "none", "--labels", "2",
                   "--count", "3", "--steps", "1"})
                .exit,
            0);
  for (const char* file :
       {"one/000000.png", "one/000004.png", "one/000007.png", "grid.png", "raw.png"}) {
    const json result = regenerate({file, "-o", "again.png", "-f"}, 0);
    EXPECT_EQ(result.at("identical"), true);
    EXPECT_EQ(result.at("bytes_equal"), true);
    EXPECT_EQ(bytes("again.png"), bytes(file)) << file;
  }
  const json record = json::parse(read_provenance(bytes("one/000004.png"), "record"));
  EXPECT_EQ(record.at("batch"), json({3, 3}));
  EXPECT_EQ(record.at("batch_labels"), json({{1, 1}, {2, 2}}));
  EXPECT_EQ(record.at("sampler"), "restart");
  EXPECT_EQ(regenerate({"grid.png", "--alone"}, 0).at("images"), 40);
  EXPECT_CONTAINS(p.run({"regenerate", "grid.png"}).out, "grid.png: identical: 40 images of ");
}

TEST_F(Regenerate, ATamperedPixelIsReported) {
  ASSERT_EQ(p.run({"sample", "runs/tiny", "-o", "t.png"}).exit, 0);
  Image image = decode_image(bytes("t.png"), "t");
  std::string text = read_provenance(bytes("t.png"), "t");
  // In the second row, third column: image 12. One of the four pixels that show a pixel.
  uint8_t& pixel = image.pixels[static_cast<size_t>(19 * image.width + 2 * 18 + 1)];
  pixel = static_cast<uint8_t>(pixel < 128 ? pixel + 9 : pixel - 9);
  p.write("tampered.png", encode_png(image, text));
  json result = regenerate({"tampered.png"}, 1);
  EXPECT_EQ(result.at("different"), json({12}));
  EXPECT_EQ(result.at("max_difference"), 9);
  // One of 16 x 16 pixels: 10 log10(255^2 / (81 / 256))
  EXPECT_NEAR(result.at("psnr").get<double>(), 53.128, 1e-3);
  EXPECT_EQ(result.at("record_reproduced"), true);
  EXPECT_EQ(result.at("differs"), json::array());
  EXPECT_CONTAINS(p.run({"regenerate", "tampered.png"}).out, "1 of 40 images, max |difference| 9");

  // Another build is named where the pixels differ.
  const std::string git = json::parse(text).at(0).at("git");
  for (size_t at = 0; (at = text.find(git, at)) != std::string::npos;)
    text.replace(at, git.size(), "0000");
  p.write("other.png", encode_png(image, text));
  result = regenerate({"other.png"}, 1);
  EXPECT_EQ(result.at("differs").at(0).at("what"), "build");
  EXPECT_CONTAINS(p.run({"regenerate", "other.png"}).out, "build: recorded 0.1.0 (0000), here ");
}

TEST_F(Regenerate, WeightsAreFoundByTheirHash) {
  ASSERT_EQ(p.run({"sample", "runs/tiny", "-o", "w.png", "--count", "4"}).exit, 0);
  // Neither at the recorded path nor under runs/.
  fs::rename(p.folder / "runs", p.folder / "moved");
  const json missing = regenerate({"w.png"}, 4);
  EXPECT_CONTAINS(missing.at("message").get<std::string>(), "searched runs/tiny/checkpoints/");
  for (const char* place : {"moved", "moved/tiny", "moved/tiny/checkpoints/step-0000020/"})
    regenerate({"w.png", "--checkpoint", place}, 0);
  // A recorded path is one checkpoint: a file does not make the program search a disk.
  const auto recorded = [&](const std::string& path) {
    json records = json::parse(read_provenance(bytes("w.png"), "w"));
    for (json& record : records) record["path"] = path;
    p.write("at.png", encode_png(decode_image(bytes("w.png"), "w"), records.dump()));
    return "at.png";
  };
  regenerate({recorded("moved/tiny/checkpoints/step-0000020")}, 0);
  regenerate({recorded("moved/tiny/checkpoints")}, 4);
  fs::create_directories(p.folder / "runs/of");
  fs::rename(p.folder / "moved/tiny", p.folder / "runs/of/another-name");
  const json found = regenerate({"w.png"}, 0);
  EXPECT_EQ(found.at("checkpoint"), "runs/of/another-name/checkpoints/step-0000020");
  fs::rename(p.folder / "runs/of/another-name", p.folder / "runs/tiny");
}

TEST_F(Regenerate, WhatDoesNotFitInAPictureIsRefusedBeforehand) {
  // Each of the records names the checkpoint.
  const std::string deep = fmt::format("{0}/{0}/{0}/{0}", std::string(200, 'd'));
  fs::create_directories(p.folder / deep);
  fs::copy(p.folder / "runs/tiny", p.folder / deep / "tiny", fs::copy_options::recursive);
  const auto sample = [&](const std::string& run, std::vector<std::string> more) {
    more.insert(more.begin(), {"sample", run, "--batch", "7", "--first", "1000000"});
    return p.run(more);
  };
  const std::string wide = "1100";
  EXPECT_EQ(sample("runs/tiny", {"--count", wide, "-o", "wide.png", "-n"}).exit, 0);
  const Finished refused = sample(deep + "/tiny", {"--count", wide, "-o", "wide.png", "--json"});
  EXPECT_EQ(refused.exit, 2);
  const json error = json::parse(refused.out).at("error");
  EXPECT_EQ(error.at("hint"), "-o DIR/ writes single images");
  const std::string message = error.at("message");
  const std::string before = "expected at most ";
  ASSERT_TRUE(contains(message, before)) << message;
  // As many as it names do fit, with little room left.
  const std::string most =
      std::to_string(std::stoi(message.substr(message.find(before) + before.size())));
  ASSERT_EQ(sample(deep + "/tiny", {"--count", most, "-o", "wide.png"}).exit, 0);
  EXPECT_GT(read_provenance(bytes("wide.png"), "wide").size(), kMaxProvenance * 97 / 100);
  EXPECT_EQ(sample(deep + "/tiny", {"--count", wide, "-o", "wide/", "-n"}).exit, 0);
  const Finished sweep = sample(deep + "/tiny", {"--count", "400", "--seeds", "2", "-o", "s.png"});
  EXPECT_EQ(sweep.exit, 2);
  EXPECT_CONTAINS(sweep.err, "for 2 seeds and 1 settings, got 400");
}

TEST_F(Regenerate, DamagedRecordsAreRefused) {
  ASSERT_EQ(p.run({"sample", "runs/tiny", "-o", "d/", "--count", "1"}).exit, 0);
  const std::string file = bytes("d/000000.png");
  const Image image = decode_image(file, "d");
  const std::string text = read_provenance(file, "d");
  const auto refused = [&](const std::string& png, const std::string& part) {
    p.write("bad.png", png);
    EXPECT_CONTAINS(regenerate({"bad.png"}, 3).at("message").get<std::string>(), part);
  };
  const auto replaced = [&](const std::string& from, const std::string& to) {
    std::string out = text;
    out.replace(out.find(from), from.size(), to);
    return encode_png(image, out);
  };
  refused("no picture", "no PNG");
  refused(encode_png(image), "expected provenance, found none");
  std::string flipped = file;
  flipped[flipped.find("\"seed\"") + 2] ^= 1;
  refused(flipped, "wrong CRC");
  refused(file.substr(0, file.size() / 2), "truncated");
  refused(replaced("\"v\":1", "\"v\":2"), "v: expected 1, got 2, which is newer");
  refused(replaced("\"steps\":2", "\"steps\":2000"), "steps = 2000: must be in [1, 1000]");
  refused(replaced("\"batch_labels\":[[0,", "\"batch_labels\":[[9,"), "batch_labels");
  EXPECT_EQ(regenerate({"none.png"}, 3).at("kind"), "data");
}

TEST_F(Regenerate, ASweepIsOnePictureAndMeasuresAsEvalDoes) {
  const Finished r = p.run({"sample", "runs/tiny", "-o", "sweep.png", "--steps", "2,1",
                            "--guidance", "1,2", "--seeds", "2", "--seed", "5", "--metrics",
                            "energy_pixels", "--samples", "32", "--json"});
  ASSERT_EQ(r.exit, 0) << r.err;
  const json result = json::parse(r.out).at("result");
  EXPECT_EQ(result.at("seeds"), json({5, 6}));
  ASSERT_EQ(result.at("rows").size(), 4u);
  const json row = result.at("rows").at(3);  // guidance by guidance, steps rising
  EXPECT_EQ(row.at("steps"), 2);
  EXPECT_EQ(row.at("guidance"), 2.0);
  const json metric = row.at("metrics").at(0);
  const std::vector<double> values = metric.at("values");
  for (int k = 0; k < 2; ++k) {
    const Finished eval =
        p.run({"eval", "runs/tiny", "--steps", "2", "--guidance", "2", "--seed",
               std::to_string(5 + k), "--metrics", "energy_pixels", "--count", "32", "--json"});
    EXPECT_EQ(json::parse(eval.out).at("result").at("rows").at(0).at("metrics").at(0).at("value"),
              values[static_cast<size_t>(k)]);
  }
  EXPECT_NE(values[0], values[1]);
  EXPECT_DOUBLE_EQ(metric.at("mean").get<double>(), (values[0] + values[1]) / 2);
  // Two settings down and across, two seeds and four labels each, doubled, with captions.
  const Image picture = decode_image(bytes("sweep.png"), "sweep");
  EXPECT_GT(picture.height, 2 * 4 * 18);
  EXPECT_EQ(regenerate({"sweep.png"}, 0).at("images"), 2 * 2 * 2 * 4);
  EXPECT_EQ(decode_image(bytes("sweep-curve.png"), "curve").channels, 3);

  EXPECT_EQ(p.run({"sample", "runs/tiny", "--metrics", "energy_pixels"}).exit, 2);
  EXPECT_EQ(p.run({"sample", "runs/tiny", "-o", "s.png", "--seeds", "2", "--samples", "1"}).exit,
            2);
  // Accuracy of labels that a generator does not have: refused before any image is made.
  ASSERT_EQ(p.run({"train", "tiny.toml", "--run", "runs/plain", "--set", "train.images=80", "--set",
                   "generator.num_classes=0"})
                .exit,
            0);
  for (std::vector<std::string> command : std::vector<std::vector<std::string>>{
           {"eval", "runs/plain"}, {"sample", "runs/plain", "-o", "plain.png", "--seeds", "1"}}) {
    command.insert(command.end(), {"--metrics", "energy_pixels,label_accuracy"});
    const Finished refused = p.run(command);
    EXPECT_EQ(refused.exit, 2);
    EXPECT_CONTAINS(refused.err, "--metrics label_accuracy: expected a generator with labels");
  }
  EXPECT_FALSE(fs::exists(p.folder / "plain.png"));
  // Without measuring there is no curve.
  EXPECT_EQ(p.run({"sample", "runs/tiny", "-o", "s.png", "--seeds", "1", "--samples", "0"}).exit,
            0);
  EXPECT_FALSE(fs::exists(p.folder / "s-curve.png"));
}

}  // namespace
}  // namespace sigma
