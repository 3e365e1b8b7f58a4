#include "sigma/io/images.h"

#include <gtest/gtest.h>

#include "image_bytes.h"
#include "sigma/base/error.h"
#include "sigma/base/sha256.h"

namespace sigma {
namespace {

using Bytes = std::vector<uint8_t>;

std::string reason(const std::string& bytes, const DecodeLimits& limits = {}) {
  try {
    decode_image(bytes, "some/file.png", limits);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData);
    EXPECT_TRUE(std::string(error.what()).starts_with("some/file.png: ")) << error.what();
    return error.what();
  }
  return "accepted";
}

#define EXPECT_HAS(text, part) EXPECT_NE(std::string(text).find(part), std::string::npos) << (text)

std::string png(const std::string& header, const std::string& before, const std::string& rows) {
  return kPngStart + header + before + png_data(rows) + kPngEnd;
}

Image pattern(int64_t height, int64_t width, int64_t channels) {
  Image image{height, width, channels, {}};
  for (int64_t y = 0; y < height; ++y)
    for (int64_t x = 0; x < width; ++x)
      for (int64_t c = 0; c < channels; ++c)
        image.pixels.push_back(static_cast<uint8_t>(x * 7 + y * 13 + c * 29 + x * y));
  return image;
}

TEST(Png, DecodesEveryKind) {
  using namespace std::string_literals;
  // 1 bit grey, one pixel set of two
  EXPECT_EQ(decode_image(png(png_header(2, 1, 1, 0), "", "\0\x40"s), "a").pixels, (Bytes{0, 255}));
  // 16 bits: rounded, not cut (0x0180 / 257 = 1.49, 0x01FF / 257 = 1.99)
  EXPECT_EQ(decode_image(png(png_header(2, 1, 16, 0), "", "\0\x01\x80\x01\xFF"s), "a").pixels,
            (Bytes{1, 2}));
  // palette
  const std::string palette = png_chunk("PLTE", "\x01\x02\x03\x0A\x0B\x0C");
  Image image = decode_image(png(png_header(2, 1, 8, 3), palette, "\0\x01\0"s), "a");
  EXPECT_EQ(image.channels, 3);
  EXPECT_EQ(image.pixels, (Bytes{10, 11, 12, 1, 2, 3}));
  // palette with transparency, over white: (10 * 128 + 255 * 127 + 127) / 255 = 132
  const std::string seen = palette + png_chunk("tRNS", "\0\x80"s);
  image = decode_image(png(png_header(2, 1, 8, 3), seen, "\0\x01\0"s), "a");
  EXPECT_EQ(image.pixels, (Bytes{132, 133, 133, 255, 255, 255}));
  // grey and alpha, over white and over a colour
  const std::string grey_alpha = png(png_header(2, 1, 8, 4), "", "\0\x64\xFF\x64\0"s);
  EXPECT_EQ(decode_image(grey_alpha, "a").pixels, (Bytes{100, 255}));
  DecodeLimits limits;
  limits.background[1] = 7;
  image = decode_image(grey_alpha, "a", limits);
  EXPECT_EQ(image.channels, 3);
  EXPECT_EQ(image.pixels, (Bytes{100, 100, 100, 255, 7, 255}));
  // RGBA
  EXPECT_EQ(decode_image(png(png_header(1, 1, 8, 6), "", "\0\x01\x02\x03\x80"s), "a").pixels,
            (Bytes{128, 128, 129}));
  // interlaced 2x2: passes 1 (0,0), 6 (1,0), 7 (row 1)
  EXPECT_EQ(
      decode_image(png(png_header(2, 2, 8, 0, true), "", "\0\x01\0\x02\0\x03\x04"s), "a").pixels,
      (Bytes{1, 2, 3, 4}));
  // animated: the first frame
  const std::string control = png_chunk("acTL", "\0\0\0\x02\0\0\0\0"s);
  const std::string frame = png_chunk("fdAT", "\0\0\0\x01rubbish"s);
  EXPECT_EQ(
      decode_image(
          kPngStart + png_header(1, 1, 8, 0) + control + png_data("\0\x09"s) + frame + kPngEnd, "a")
          .pixels,
      (Bytes{9}));
}

TEST(Png, RefusesWhatIsBroken) {
  using namespace std::string_literals;
  const std::string good = png(png_header(1, 2, 8, 0), "", "\0\x01\0\x02"s);
  ASSERT_EQ(reason(good), "accepted");
  for (size_t size = 0; size < good.size(); ++size)
    EXPECT_NE(reason(good.substr(0, size)), "accepted") << size;
  for (size_t at = 0; at + 12 < good.size(); ++at) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x10);
    EXPECT_NE(reason(bad), "accepted") << at;
  }
  EXPECT_HAS(reason(""), "empty");
  EXPECT_HAS(reason("GIF89a"), "neither PNG nor JPEG");
  EXPECT_HAS(reason("just text"), "neither PNG nor JPEG");
  EXPECT_HAS(reason(good.substr(0, good.size() - 20)), "truncated");
  EXPECT_NE(reason(png(png_header(1, 2, 8, 0), "", "\0\x01"s)), "accepted");    // a row short
  EXPECT_NE(reason(png(png_header(1, 1, 8, 0), "", "\x09\x01"s)), "accepted");  // no such filter
  EXPECT_NE(reason(png(png_header(1, 1, 8, 3), "", "\0\0"s)), "accepted");      // no palette
  EXPECT_NE(reason(png(png_header(1, 1, 3, 0), "", "\0\0"s)), "accepted");      // no such depth
  EXPECT_HAS(reason(png(png_header(0, 1, 8, 0), "", "")), "no pixels");
}

TEST(Png, LimitsComeBeforeMemory) {
  const std::string huge = kPngStart + png_header(50000, 50000, 8, 2) + kPngEnd;
  EXPECT_HAS(reason(huge), "expected sides of at most 16384");
  EXPECT_HAS(reason(kPngStart + png_header(0x7FFFFFFF, 0x7FFFFFFF, 16, 6)),
             "2147483647x2147483647");
  DecodeLimits limits;
  limits.max_pixels = 3;
  EXPECT_HAS(reason(png(png_header(2, 2, 8, 0), "", std::string(6, '\0')), limits), "3 pixels");
  limits.max_pixels = 4;
  EXPECT_EQ(reason(png(png_header(2, 2, 8, 0), "", std::string(6, '\0')), limits), "accepted");
}

TEST(Png, EncodesTheSameBytesEachTimeAndBack) {
  for (const int64_t channels : {1, 3}) {
    const Image image = pattern(19, 23, channels);
    const std::string bytes = encode_png(image, "{}");
    EXPECT_EQ(bytes, encode_png(image, "{}"));
    const Image back = decode_image(bytes, "a");
    EXPECT_EQ(back.height, 19);
    EXPECT_EQ(back.width, 23);
    EXPECT_EQ(back.channels, channels);
    EXPECT_EQ(back.pixels, image.pixels);
    EXPECT_EQ(bytes.find("tIME"), std::string::npos);
  }
  Image wrong = pattern(2, 2, 3);
  wrong.pixels.pop_back();
  EXPECT_THROW(encode_png(wrong), Error);
  EXPECT_THROW(encode_png(pattern(2, 2, 2)), Error);
}

TEST(Provenance, HasTheGoldenBytes) {
  const std::string bytes = encode_png(pattern(2, 2, 1), "{}");
  const std::string chunk = from_hex(
      "00000008"
      "74455874"
      "7369676d61"
      "00"
      "7b7d"
      "d54db3ad");
  EXPECT_EQ(bytes.find(chunk), 8u + 25u);  // straight after IHDR, so before IDAT
  EXPECT_EQ(read_provenance(bytes, "a"), "{}");
  EXPECT_EQ(read_provenance(encode_png(pattern(2, 2, 1)), "a"), "");
  const std::string longest((1 << 20) - 6, 'x');
  EXPECT_EQ(read_provenance(encode_png(pattern(1, 1, 1), longest), "a"), longest);
  EXPECT_THROW(encode_png(pattern(1, 1, 1), longest + "x"), Error);
  EXPECT_THROW(encode_png(pattern(1, 1, 1), "\n"), Error);
}

TEST(Provenance, DamageIsAnError) {
  using namespace std::string_literals;
  const std::string bytes = encode_png(pattern(2, 2, 1), "{}");
  const auto broken = [](const std::string& png) {
    try {
      read_provenance(png, "file");
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kData);
      return std::string(error.what());
    }
    return "accepted"s;
  };
  std::string bad = bytes;
  bad[8 + 25 + 14] = 'X';
  EXPECT_HAS(broken(bad), "CRC");
  for (size_t size = 0; size < bytes.find("IDAT"); ++size)
    EXPECT_NE(broken(bytes.substr(0, size)), "accepted") << size;
  const std::string start = kPngStart + png_header(1, 1, 8, 0);
  const std::string mark = png_chunk("tEXt", "sigma\0{}"s);
  EXPECT_HAS(broken(start + mark + mark + kPngEnd), "two");
  EXPECT_HAS(broken(start + png_chunk("tEXt", "sigma\0\x01"s) + kPngEnd), "ASCII");
  EXPECT_HAS(broken(start + png_chunk("tEXt", "sigma\0"s) + kPngEnd), "ASCII");
  EXPECT_HAS(broken(start + png_chunk("tEXt", "sigma\0"s + std::string(1 << 20, 'x')) + kPngEnd),
             "1 MiB");
  EXPECT_HAS(broken(start + "\xFF\xFF\xFF\xFFtEXtsigma"), "truncated");
}

TEST(Jpeg, Decodes) {
  const Image rgb = decode_image(from_hex(kJpegRgb), "a");
  EXPECT_EQ(rgb.channels, 3);
  EXPECT_EQ(rgb.height, 8);
  for (size_t i = 0; i < rgb.pixels.size(); i += 3) {
    EXPECT_EQ(rgb.pixels[i], 200);
    EXPECT_EQ(rgb.pixels[i + 1], 100);
    EXPECT_EQ(rgb.pixels[i + 2], 50);
  }
  const Image grey = decode_image(from_hex(kJpegGrey), "a");
  EXPECT_EQ(grey.channels, 1);
  EXPECT_EQ(grey.pixels, Bytes(64, 200));
  EXPECT_EQ(decode_image(from_hex(kJpegProgressive), "a").pixels.size(), 16u * 16 * 3);
}

TEST(Jpeg, RefusesWhatIsBroken) {
  EXPECT_HAS(reason(from_hex(kJpegCmyk)), "CMYK");
  for (const char* hex : {kJpegRgb, kJpegGrey, kJpegProgressive}) {
    const std::string good = from_hex(hex);
    ASSERT_EQ(reason(good), "accepted");
    for (size_t size = 0; size < good.size(); ++size)
      EXPECT_NE(reason(good.substr(0, size)), "accepted") << size;
  }
  std::string huge = from_hex(kJpegRgb);
  const size_t frame = huge.find("\xff\xc0");
  huge.replace(frame + 5, 4, "\xc3\x50\xc3\x50");
  EXPECT_HAS(reason(huge), "50000x50000");
  // flipped bytes: any answer, but no crash
  const std::string good = from_hex(kJpegProgressive);
  for (size_t at = 2; at < good.size(); ++at) {
    std::string bad = good;
    bad[at] = static_cast<char>(~bad[at]);
    reason(bad);
  }
}

TEST(Ops, CenterCropEqualsPillow) {  // 13.0; guided-diffusion's center_crop_arr
  struct Case {
    int64_t height, width, channels, size;
    const char* sha256;
  };
  const Case cases[] = {
      {37, 53, 3, 16, "bc997d9e44681f8770a4890233b8a2ecaa2ee20c5019b3f255d7410ff99e9cc8"},
      {53, 37, 1, 16, "f9148b15f2c4f2b52b68364c03b7be402958e06541a5d15706037209d533d98f"},
      {20, 31, 3, 12, "78f12264ab624d7d273a5ca9be4194da9db6d67211a276d12c4f3f5cffb50575"},
      {9, 14, 3, 16, "3027ab10972433af8a1614a79259779b41d7860ada89ff55e7b0238e5595bbe8"},
      {16, 16, 3, 16, "1fab247f4d422b94fc62f89cfbf18cee5cf47ee455c0122741db2fab60ad5fb0"},
      {131, 70, 1, 8, "ab11c171e44ff345e91e005ac70d88fe2f773f1cab9dc82560bf402401632880"},
  };
  for (const Case& c : cases) {
    const Image out = center_crop(pattern(c.height, c.width, c.channels), c.size);
    EXPECT_EQ(out.height, c.size);
    EXPECT_EQ(out.width, c.size);
    EXPECT_EQ(sha256_hex({reinterpret_cast<const char*>(out.pixels.data()), out.pixels.size()}),
              c.sha256)
        << c.height << "x" << c.width;
  }
  // A long thin image must not be enlarged as a whole: 16,384 x 256 times 256 would be 3 GB.
  EXPECT_EQ(center_crop(pattern(1, 16384, 3), 256).pixels.size(), 256u * 256 * 3);
  EXPECT_THROW(center_crop(pattern(2, 2, 1), 0), Error);
}

TEST(Ops, Channels) {
  const Image rgb{1, 2, 3, {255, 255, 255, 10, 20, 30}};
  EXPECT_EQ(with_channels(rgb, 1).pixels, (Bytes{255, 18}));  // 2.99 + 11.74 + 3.42 = 18.15
  EXPECT_EQ(with_channels(Image{1, 2, 1, {5, 6}}, 3).pixels, (Bytes{5, 5, 5, 6, 6, 6}));
  EXPECT_EQ(with_channels(rgb, 3).pixels, rgb.pixels);
  EXPECT_THROW(with_channels(rgb, 2), Error);
}

TEST(Ops, Grid) {
  const std::vector<Image> images = {{1, 2, 1, {1, 2}}, {1, 2, 1, {3, 4}}, {1, 2, 1, {5, 6}}};
  const Image grid = image_grid(images, 2);
  EXPECT_EQ(grid.height, 3);
  EXPECT_EQ(grid.width, 5);
  EXPECT_EQ(grid.pixels, (Bytes{1, 2, 255, 3, 4, 255, 255, 255, 255, 255, 5, 6, 255, 255, 255}));
  const Image large = image_grid({images[0]}, 1, 0, 2);
  EXPECT_EQ(large.pixels, (Bytes{1, 1, 2, 2, 1, 1, 2, 2}));
  EXPECT_THROW(image_grid({}, 2), Error);
  EXPECT_THROW(image_grid({images[0], Image{2, 1, 1, {1, 2}}}, 2), Error);
}

}  // namespace
}  // namespace sigma
