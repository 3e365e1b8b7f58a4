#include "sigma/io/image_record.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "sigma/base/error.h"
#include "sigma/io/image_draw.h"

namespace sigma {
namespace {

ImageRecord example() {
  return {.sigma = "0.1.0",
          .git = "abc",
          .checkpoint = std::string(64, 'a'),
          .path = "runs/x/checkpoints/step-0000001",
          .run_id = "1",
          .tokenizer = std::string(64, 'b'),
          .method = "imm",
          .ema = "main",
          .seed = 3,
          .index = 7,
          .label = 2,
          .sampler = "restart",
          .schedule = "explicit",
          .steps = 2,
          .rho = 7,
          .mid_eta = {0.5},
          .guidance = 1.5,
          .guidance_range = {0, 2},
          .dtype = "float32",
          .device = "cpu",
          .hardware = "AVX2, 2 threads",
          .deterministic = true,
          .batch_first = 5,
          .batch_count = 4,
          .batch_labels = {{1, 2}, {2, 2}},
          .at = {{4, 6, 2}},
          .pixels = std::string(64, 'c')};
}

std::string reason(const std::string& text) {
  try {
    parse_image_records(text, "a.png");
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData);
    EXPECT_TRUE(std::string(error.what()).starts_with("a.png: provenance: ")) << error.what();
    return error.what();
  }
  return "accepted";
}

#define EXPECT_HAS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

TEST(ImageRecord, SurvivesItsText) {
  ImageRecord plain = example();
  plain.tokenizer.clear();
  plain.label.reset();
  plain.batch_labels.clear();
  plain.at.reset();
  for (const ImageRecord& record : {example(), plain}) {
    const Json json = to_json(record);
    const auto one = parse_image_records(json.dump(), "a");
    ASSERT_EQ(one.size(), 1u);
    EXPECT_EQ(to_json(one[0]), json);
    const auto two = parse_image_records(Json::array({json, json}).dump(), "a");
    ASSERT_EQ(two.size(), 2u);
    EXPECT_EQ(to_json(two[1]), json);
  }
}

TEST(ImageRecord, RefusesWhatIsNotExactlyOne) {
  const auto changed = [](const char* key, const Json& value) {
    Json json = to_json(example());
    json[key] = value;
    return reason(json.dump());
  };
  EXPECT_HAS(changed("v", 2), "v: expected 1, got 2, which is newer");
  EXPECT_HAS(changed("v", 1.0), "v: expected a whole number");
  EXPECT_HAS(changed("seed", -1), "seed: expected a whole number of at least 0, got -1");
  EXPECT_HAS(changed("seed", uint64_t{1} << 63), "seed: expected a whole number");
  EXPECT_HAS(changed("git", 7), "git: expected text, got 7");
  EXPECT_HAS(changed("pixels", "0"), "pixels: expected a SHA-256 in hex");
  EXPECT_HAS(changed("checkpoint", std::string(64, 'A')), "checkpoint: expected a SHA-256 in hex");
  EXPECT_HAS(changed("ema", "../x"), "ema: expected main or none");
  EXPECT_HAS(changed("device", "tpu"), "device: expected cpu or cuda");
  EXPECT_HAS(changed("guidance", "1"), "guidance: expected a number");
  EXPECT_HAS(changed("deterministic", 1), "deterministic: expected true or false");
  EXPECT_HAS(changed("mid_eta", {1, "x"}), "mid_eta: expected a number");
  EXPECT_HAS(changed("guidance_range", {1}), "guidance_range: expected a list of 2");
  EXPECT_HAS(changed("batch", {8, 4}), "batch: expected one that holds image 7");
  EXPECT_HAS(changed("batch", {5, 1 << 30}), "batch: expected one that holds image 7, of at most");
  EXPECT_HAS(changed("batch_labels", {{2, 3}}), "batch_labels: expected those of 4 images");
  EXPECT_HAS(changed("batch_labels", {{2, 5}}), "batch_labels: expected those of 4 images");
  EXPECT_HAS(changed("batch_labels", {{1, 3}, {2, 1}}), "expected label 2 for image 7, got 1");
  EXPECT_HAS(changed("at", {1, 2, 0}), "at: expected a whole number of at least 1");
  EXPECT_HAS(changed("extra", 1), "unknown key \"extra\"");
  Json missing = to_json(example());
  missing.erase("steps");
  EXPECT_HAS(reason(missing.dump()), "expected the key steps, got none");

  const std::string text = to_json(example()).dump();
  EXPECT_HAS(reason("{\"v\":1," + text.substr(1)), "the key \"v\" comes twice");
  EXPECT_HAS(reason(text + "x"), "parse error");
  EXPECT_HAS(reason(text.substr(0, text.size() - 1)), "parse error");
  EXPECT_HAS(reason("[]"), "expected images, got none");
  EXPECT_HAS(reason("[1]"), "expected an object, got 1");
  EXPECT_HAS(reason("7"), "expected an object, got 7");
  EXPECT_HAS(reason(std::string(100000, '[')), "expected a depth of at most 4");
  EXPECT_HAS(reason("{\"v\":1e999}"), "");
  EXPECT_NE(reason("{\"v\":1e999}"), "accepted");
}

TEST(ImageDraw, SetsCutsAndWrites) {
  Image picture = white_image(20, 30, 1);
  const Image image{.height = 2, .width = 2, .channels = 1, .pixels = {1, 2, 3, 4}};
  draw_image(picture, image, 5, 6, 3);
  EXPECT_EQ(cut_image(picture, 2, 2, 5, 6, 3).pixels, image.pixels);
  EXPECT_EQ(cut_image(picture, 1, 7, 5, 6).pixels, (std::vector<uint8_t>{1, 1, 1, 2, 2, 2, 255}));
  // Out of the picture: left out in drawing, refused in cutting.
  draw_image(picture, image, 29, 19, 3);
  EXPECT_EQ(picture.pixels.back(), 1);
  for (const auto& [left, top, scale] : {std::array<int64_t, 3>{29, 0, 1},
                                         {0, 19, 1},
                                         {0, 0, 16},
                                         {31, 0, 1},
                                         {0, 0, int64_t{1} << 62}})
    EXPECT_THROW(cut_image(picture, 2, 2, left, top, scale), Error);
  // A 1, and nothing else: 8 of 15 pixels are ink.
  Image text = white_image(text_height(1), text_width("1", 1), 3);
  draw_text(text, "1", 0, 0, 1, {.r = 9});
  EXPECT_EQ(std::count(text.pixels.begin(), text.pixels.end(), 9), 8);
  Image lines = white_image(5, 5, 3);
  draw_line(lines, 4, 0, 0, 4, {.r = 7});
  for (int i = 0; i < 5; ++i) EXPECT_EQ(lines.pixels[static_cast<size_t>((i * 5 + 4 - i) * 3)], 7);
}

}  // namespace
}  // namespace sigma
