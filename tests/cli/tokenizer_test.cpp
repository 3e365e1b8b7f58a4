// tokenize, detokenize, eval and inspect reconstruction, on tokenizers of 8x8 images that train
// in a second.
#include <torch/types.h>

#include <cmath>
#include <map>
#include <memory>

#include "sigma/data/dataset.h"
#include "sigma/io/images.h"
#include "sigma/io/safetensors.h"
#include "tests/cli/program.h"

namespace sigma {
namespace {

constexpr int kTrain = 48, kTest = 16;
constexpr int64_t kPad = 2;

class TokenizerCli : public ::testing::Test {
 protected:
  // The runs are the same for all tests.
  static void SetUpTestSuite() {
    shared = std::make_unique<Program>("tokenizer");
    const TokenizerCli setup;
    setup.write_split("train", kTrain, 0);
    setup.write_split("test", kTest, kTrain);
    setup.train("nested", "bottleneck = { dim = 3 }\nnesting = { kind = \"nested\" }");
    setup.train("vq", "bottleneck = { kind = \"vq\", dim = 3, codes = 16, norm = \"l2\" }");
  }
  static void TearDownTestSuite() { shared.reset(); }
  void TestBody() override {}

  // Two classes: bright above or bright on the left.
  void write_split(const std::string& split, int count, int first) const {
    for (int n = first; n < first + count; ++n) {
      Image image{.height = 8, .width = 8, .channels = 1, .pixels = {}};
      const int label = n % 2;
      for (int y = 0; y < 8; ++y) {
        for (int x = 0; x < 8; ++x) {
          const bool bright = (label == 0 ? y : x) < 3 + n % 3;
          image.pixels.push_back(
              static_cast<uint8_t>((bright ? 150 : 30) + (n * 7 + y * 3 + x) % 60));
        }
      }
      p.write(fmt::format("images/{}/{}/{:03}.png", split, label == 0 ? "above" : "left", n),
              encode_png(image));
    }
  }

  // Trains runs/NAME; `tokenizer`: lines of [tokenizer].
  void train(const std::string& name, const std::string& tokenizer, int queries = 4,
             const std::string& layout = "append") const {
    p.write(name + ".toml", fmt::format(R"(task = "tokenizer"
[data]
kind = "folder"
root = "images"
pad = {}
threads = 0
[tokenizer]
patch_size = 4
latent_norm = {{ images = 100 }}
{}
[tokenizer.encoder]
queries = {}
trunk = {{ hidden_size = 16, depth = 1, num_heads = 2 }}
[tokenizer.decoder]
layout = "{}"
trunk = {{ hidden_size = 16, depth = 1, num_heads = 2 }}
[train]
images = 1200
batch = 16
optimizer = {{ lr = 5e-3 }}
ema = {{ decay = 0.9 }}
)",
                                        kPad, tokenizer, queries, layout));
    const Finished r = p.run({"train", name + ".toml"});
    ASSERT_EQ(r.exit, 0) << r.err;
  }
  nlohmann::json json_of(std::vector<std::string> command) const {
    // The tests share a folder, and the names in it.
    command.insert(command.end(), {"--json", "-f"});
    const Finished r = p.run(command);
    EXPECT_EQ(r.exit, 0) << r.err;
    return nlohmann::json::parse(r.out).at("result");
  }
  // uint8 [1,y,x]
  torch::Tensor png(const std::string& name) const {
    return from_image(decode_image(read_file(p.folder / name), name));
  }
  void expect_error(const std::vector<std::string>& command, int exit,
                    const std::vector<std::string>& texts) const {
    const Finished r = p.run(command);
    EXPECT_EQ(r.exit, exit) << fmt::format("{}", fmt::join(command, " "));
    for (const std::string& text : texts) EXPECT_CONTAINS(r.err, text);
    EXPECT_FALSE(fs::exists(p.folder / "x.png"));
    EXPECT_FALSE(fs::exists(p.folder / "x"));
    EXPECT_FALSE(fs::exists(p.folder / "x.safetensors"));
  }

  static inline std::unique_ptr<Program> shared;
  const Program& p = *shared;
};

std::map<std::string, double> values_of(const nlohmann::json& eval) {
  std::map<std::string, double> out;
  for (const auto& metric : eval.at("metrics"))
    out[metric.at("name").get<std::string>()] = metric.at("value").get<double>();
  return out;
}

TEST_F(TokenizerCli, ImagesToLatentsAndBackAreWhatEvalMeasures) {
  json_of({"tokenize", "runs/nested", "test"});
  const SafetensorsFile file(p.folder / "latents.safetensors");
  EXPECT_EQ(file.load("latents").sizes(), torch::IntArrayRef({kTest, 4, 3}));
  EXPECT_EQ(file.load("labels").sum().item<int64_t>(), kTest / 2);
  EXPECT_FALSE(file.contains("indices"));
  EXPECT_EQ(file.metadata().at("image_shape"), "[1,12,12]");

  for (const auto& [folder, flags] : std::map<std::string, std::vector<std::string>>{
           {"all", {}}, {"four", {"--keep", "4"}}, {"one", {"--keep", "1", "--batch", "3"}}}) {
    std::vector<std::string> command = {"detokenize", "runs/nested", "latents.safetensors", "-o",
                                        folder};
    command.insert(command.end(), flags.begin(), flags.end());
    ASSERT_EQ(p.run(command).exit, 0);
  }
  const nlohmann::json eval = json_of({"eval", "runs/nested"});
  const auto metrics = values_of(eval);
  const auto psnr = [&](const std::string& folder) {
    double error = 0;
    for (int i = 0; i < kTest; ++i) {
      // A folder's classes come one after the other.
      const int n = kTrain + (i < kTest / 2 ? 2 * i : 2 * i - kTest + 1);
      const auto original =
          png(fmt::format("images/test/{}/{:03}.png", n % 2 ? "left" : "above", n));
      const auto decoded = png(fmt::format("{}/{:06}.png", folder, i));
      EXPECT_EQ(decoded.sizes(), torch::IntArrayRef({1, 8, 8})) << "the padding is cut off";
      error += (decoded.to(torch::kDouble) - original.to(torch::kDouble))
                   .div(255)
                   .square()
                   .mean()
                   .item<double>();
    }
    return -10 * std::log10(error / kTest);
  };
  // A pixel on the edge between two bytes may fall to either side.
  constexpr double kRounding = 0.02;
  EXPECT_NEAR(psnr("all"), metrics.at("psnr_of_mean"), kRounding);
  const auto& prefixes = eval.at("prefixes");
  ASSERT_EQ(prefixes.size(), 3u);  // 1, 2, 4
  EXPECT_NEAR(psnr("one"), prefixes[0].at("psnr_of_mean").get<double>(), kRounding);
  EXPECT_NEAR(psnr("four"), prefixes[2].at("psnr_of_mean").get<double>(), kRounding);
  EXPECT_TRUE(torch::equal(png("all/000003.png"), png("four/000003.png")));
  EXPECT_GT(psnr("four"), psnr("one"));
  EXPECT_EQ(prefixes[1].at("floats"), 6);
  EXPECT_TRUE(prefixes[1].at("pca").contains("psnr_of_mean"));
  EXPECT_EQ(metrics.at("linear_probe"), 1.0) << "two classes that are told apart by a row";
  EXPECT_EQ(metrics.at("linear_probe_pca"), 1.0);
  EXPECT_FALSE(metrics.contains("ssim_gauss11")) << "8 pixels a side";
  EXPECT_TRUE(eval.at("not_measured").contains("ssim_gauss11"));
}

TEST_F(TokenizerCli, FilesAndFoldersAreSeenAsTheRunsOwnImages) {
  json_of({"tokenize", "runs/nested", "test", "-o", "split.safetensors"});
  json_of({"tokenize", "runs/nested", "images/test", "-o", "folder.safetensors", "--count", "5"});
  json_of({"tokenize", "runs/nested", "images/test/above/048.png", "-o", "one.safetensors"});
  const auto latents = [&](const char* name) {
    return SafetensorsFile(p.folder / name).load("latents");
  };
  const torch::Tensor split = latents("split.safetensors");
  EXPECT_EQ(latents("folder.safetensors").size(0), 5);
  EXPECT_TRUE(torch::allclose(latents("folder.safetensors"), split.narrow(0, 0, 5), 0, 1e-5));
  EXPECT_TRUE(torch::allclose(latents("one.safetensors"), split.narrow(0, 0, 1), 0, 1e-5));
  EXPECT_FALSE(SafetensorsFile(p.folder / "one.safetensors").contains("labels"));

  p.write("odd.png",
          encode_png({.height = 8, .width = 6, .channels = 1, .pixels = std::vector<uint8_t>(48)}));
  expect_error({"tokenize", "runs/nested", "odd.png", "-o", "x.safetensors"}, 3,
               {"expected images of 1x8x8 pixels, got 1x8x6", "odd.png"});
  expect_error({"tokenize", "runs/nested", "none.png", "-o", "x.safetensors"}, 3, {"none.png"});
  expect_error({"tokenize", "runs/nested", "test", "-o", "x.png"}, 2, {"FILE.safetensors"});
}

TEST_F(TokenizerCli, CodesSayTheSameAsTheirLatents) {
  json_of({"tokenize", "runs/vq", "test"});
  const SafetensorsFile file(p.folder / "latents.safetensors");
  const torch::Tensor indices = file.load("indices");
  write_safetensors(p.folder / "codes.safetensors", {{"indices", indices}}, file.metadata());
  json_of({"detokenize", "runs/vq", "latents.safetensors", "-o", "a.png"});
  json_of({"detokenize", "runs/vq", "codes.safetensors", "-o", "b.png"});
  EXPECT_EQ(read_file(p.folder / "a.png"), read_file(p.folder / "b.png"));
  EXPECT_EQ(png("a.png").sizes(), torch::IntArrayRef({1, 4 * 16 + 3 * 2, 4 * 16 + 3 * 2}));

  const torch::Tensor counts = torch::bincount(indices.flatten(), {}, 16).to(torch::kDouble);
  const torch::Tensor share = counts / counts.sum();
  const auto metrics =
      values_of(json_of({"eval", "runs/vq", "--metrics", "code_usage,code_perplexity"}));
  EXPECT_EQ(metrics.size(), 2u);
  EXPECT_DOUBLE_EQ(metrics.at("code_usage"), (counts > 0).to(torch::kDouble).mean().item<double>());
  EXPECT_NEAR(metrics.at("code_perplexity"),
              std::exp(-torch::xlogy(share, share).sum().item<double>()), 1e-9);

  write_safetensors(p.folder / "high.safetensors", {{"indices", indices + 16}}, file.metadata());
  expect_error({"detokenize", "runs/vq", "high.safetensors", "-o", "x.png"}, 3, {"[0, 16)"});
  expect_error({"eval", "runs/vq", "--metrics", "prefixes"}, 2, {"no nested prefixes"});
}

TEST_F(TokenizerCli, BadLatentsAreRefusedAndNothingIsWritten) {
  json_of({"tokenize", "runs/nested", "test"});
  json_of({"tokenize", "runs/vq", "test", "-o", "vq.safetensors"});
  const SafetensorsFile file(p.folder / "latents.safetensors");
  const std::string hash = file.metadata().at("weights_sha256");
  const auto back = [](const std::string& run, const std::string& latents) {
    return std::vector<std::string>{"detokenize", run, latents, "-o", "x.png"};
  };
  expect_error(
      back("runs/vq", "latents.safetensors"), 3,
      {hash, SafetensorsFile(p.folder / "vq.safetensors").metadata().at("weights_sha256")});
  const auto with = [&](const NamedTensors& tensors) {
    write_safetensors(p.folder / "bad.safetensors", tensors, file.metadata());
    return back("runs/nested", "bad.safetensors");
  };
  expect_error(with({{"latents", torch::zeros({2, 5, 3})}}), 3,
               {"expected Float [n,4,3], got Float [2,5,3]"});
  expect_error(with({{"latents", torch::zeros({2, 4, 3}, torch::kDouble)}}), 3, {"got Double"});
  expect_error(with({{"latents", torch::full({2, 4, 3}, NAN)}}), 3, {"finite"});
  expect_error(with({{"latent", torch::zeros({2, 4, 3})}}), 3, {"latents"});
  write_safetensors(p.folder / "bad.safetensors", {{"latents", torch::zeros({2, 4, 3})}});
  expect_error(back("runs/nested", "bad.safetensors"), 3, {"sigma_latents"});
  expect_error(back("runs/nested", "none.safetensors"), 3, {"none.safetensors"});
  fs::resize_file(p.folder / "latents.safetensors", fs::file_size(file.path()) - 4);
  expect_error(back("runs/nested", "latents.safetensors"), 3, {"latents.safetensors"});

  std::vector<std::string> keep = back("runs/vq", "vq.safetensors");
  keep.insert(keep.end(), {"--keep", "2"});
  expect_error(keep, 2, {"keep", "nested prefixes"});
  json_of({"tokenize", "runs/nested", "test", "-o", "good.safetensors"});
  for (const char* k : {"0", "5"}) {
    keep = back("runs/nested", "good.safetensors");
    keep.insert(keep.end(), {"--keep", k});
    expect_error(keep, 2, {"keep", k});
  }
  keep = back("runs/nested", "good.safetensors");
  keep.back() = "x.jpg";
  expect_error(keep, 2, {"x.jpg"});
}

TEST_F(TokenizerCli, AMaskedAutoencoderIsOnlyProbed) {
  train("mae", R"(down = false
bottleneck = { dim = 16 }
mask = { policy = "drop", low = 0.6, high = 0.6, per = "step" }
pixel = { target = "norm_pixel", masked_only = true })",
        /*queries=*/0, "in_place");
  const nlohmann::json eval = json_of({"eval", "runs/mae"});
  EXPECT_GT(values_of(eval).at("linear_probe"), 0.7);
  EXPECT_FALSE(values_of(eval).contains("psnr_of_mean"));
  EXPECT_CONTAINS(eval.at("not_measured").at("psnr_of_mean").get<std::string>(), "norm_pixel");
  expect_error({"eval", "runs/mae", "--metrics", "psnr_of_mean"}, 2, {"norm_pixel"});
  json_of({"tokenize", "runs/mae", "test"});
  expect_error({"detokenize", "runs/mae", "latents.safetensors", "-o", "x.png"}, 2, {"norm_pixel"});

  // Rows: the image, what is seen of it, what comes back, the same beside what was seen.
  json_of({"inspect", "reconstruction", "runs/mae", "--image", "0,3", "-o", "mae.png"});
  const torch::Tensor rgb = png("mae.png");
  constexpr int64_t kSide = 108, kGap = 4, kGroupGap = 20;
  ASSERT_EQ(rgb.sizes(),
            torch::IntArrayRef({3, 4 * kSide + 2 * kGap + kGroupGap, 2 * kSide + kGap}));
  const auto row = [&](int64_t y) { return rgb.narrow(1, y, kSide).narrow(2, 0, kSide); };
  const torch::Tensor original = row(0), seen = row(kSide + kGap),
                      beside = row(3 * kSide + 2 * kGap + kGroupGap);
  const torch::Tensor hidden = (seen != original).any(0);
  EXPECT_EQ(hidden.sum().item<int64_t>(), 6 * kSide * kSide / 9);  // ceil(.6 * 9) of 9 patches
  EXPECT_TRUE((seen.masked_select(hidden) == 128).all().item<bool>()) << "grey";
  EXPECT_TRUE(torch::equal(beside.masked_select(~hidden), original.masked_select(~hidden)));
  EXPECT_FALSE(torch::equal(beside, original));
}

TEST_F(TokenizerCli, ThePictureOfPrefixesHasARowForEach) {
  const nlohmann::json picture = json_of({"inspect", "reconstruction", "runs/nested"});
  ASSERT_EQ(picture.at("rows").size(), 3u + 3u);  // image, training, all of it; 1, 2 and 4 tokens
  EXPECT_EQ(picture.at("rows")[2].at("psnr_of_mean"), picture.at("rows")[5].at("psnr_of_mean"));
  EXPECT_EQ(png("reconstruction.png").size(1), 6 * 108 + 3 * 4 + 2 * 20);
  expect_error({"inspect", "reconstruction", "runs/nested", "--image", "16", "-o", "x.png"}, 2,
               {"--image: expected [0, 16), got 16"});
}

}  // namespace
}  // namespace sigma
