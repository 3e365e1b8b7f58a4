// PNG and JPEG images as bytes, grids of them, and the provenance chunk. Torch-free. Everything is
// 8 bits a channel, grey or RGB. Not supported: CMYK, animation, keeping 16 bits or alpha.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace sigma {

/// 8 bits a channel, rows top to bottom, channels interleaved: pixels[(y * width + x) * channels +
/// c].
struct Image {
  int64_t height = 0;
  int64_t width = 0;
  int64_t channels = 0;  // 1 grey or 3 RGB
  std::vector<uint8_t> pixels;
};

struct DecodeLimits {
  int64_t max_side = 16384;
  int64_t max_pixels = int64_t{1} << 26;
  uint8_t background[3] = {255, 255, 255};  // under transparent pixels
};

/// PNG or JPEG by magic bytes, to grey or RGB as stored (palette expanded, 16 bits scaled to 8,
/// alpha laid over the background). Refused with kData: other formats, CMYK, empty, truncated,
/// corrupt, above the limits (checked before any allocation). `name` is used in messages.
Image decode_image(std::string_view bytes, const std::string& name,
                   const DecodeLimits& limits = {});

/// Characters of provenance that a PNG holds: its chunk has at most 1 MiB, with a key of 6.
constexpr size_t kMaxProvenance = (size_t{1} << 20) - 6;

/// PNG bytes, deterministic (no time chunk). A non-empty `provenance` (ASCII JSON) becomes a tEXt
/// chunk "sigma" before IDAT.
std::string encode_png(const Image& image, const std::string& provenance = "");

/// The "sigma" chunk of a PNG, or "" if it has none. Errors: kData (damaged, over 1 MiB).
std::string read_provenance(std::string_view png, const std::string& name);

/// Images of equal size in rows of `columns`, `gap` white pixels between; `scale` repeats each
/// pixel.
Image image_grid(const std::vector<Image>& images, int64_t columns, int64_t gap = 1,
                 int64_t scale = 1);

/// Grey <-> RGB: 0.299 R + 0.587 G + 0.114 B, or three equal channels.
Image with_channels(const Image& image, int64_t channels);

/// guided-diffusion's centre crop to size x size: box-halve while 2 size <= min side, antialiased
/// bicubic (a = -0.5), crop.
Image center_crop(const Image& image, int64_t size);

}  // namespace sigma
