#include "sigma/io/images.h"

#include <zlib.h>

#include <algorithm>

#include "sigma/base/error.h"
#include "sigma/io/image_codecs.h"

namespace sigma {

void refuse_image(const std::string& name, std::string_view what) {
  fail(ErrorKind::kData, "{}: {}", name, what);
}

void check_image_limits(uint64_t height, uint64_t width, const DecodeLimits& limits,
                        const std::string& name) {
  const auto side = static_cast<uint64_t>(limits.max_side);
  if (height == 0 || width == 0) refuse_image(name, "no pixels");
  if (height > side || width > side || height * width > static_cast<uint64_t>(limits.max_pixels))
    fail(ErrorKind::kData, "{}: expected sides of at most {} and at most {} pixels, got {}x{}",
         name, limits.max_side, limits.max_pixels, width, height);
}

uint32_t big_endian(std::string_view bytes, size_t at) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value = value << 8 | static_cast<uint8_t>(bytes[at + i]);
  return value;
}

bool is_printable(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c <= '~'; });
}

Image decode_image(std::string_view bytes, const std::string& name, const DecodeLimits& limits) {
  if (bytes.empty()) refuse_image(name, "empty file");
  if (bytes.starts_with(kPngMagic)) return decode_png(bytes, name, limits);
  if (bytes.starts_with(kJpegMagic)) return decode_jpeg(bytes, name, limits);
  refuse_image(name, "neither PNG nor JPEG");
}

std::string read_provenance(std::string_view png, const std::string& name) {
  if (!png.starts_with(kPngMagic)) refuse_image(name, "no PNG");
  std::string found;
  for (size_t at = kPngMagic.size();;) {
    if (png.size() - at < 12) refuse_image(name, "damaged PNG: truncated");
    const size_t size = big_endian(png, at);
    if (size > png.size() - at - 12) refuse_image(name, "damaged PNG: truncated");
    const std::string_view typed = png.substr(at + 4, size + 4);
    const std::string_view type = typed.substr(0, 4), data = typed.substr(4);
    if (type == "IDAT" || type == "IEND") return found;
    const auto crc = static_cast<uint32_t>(
        crc32_z(0, reinterpret_cast<const Bytef*>(typed.data()), typed.size()));
    if (crc != big_endian(png, at + 8 + size)) refuse_image(name, "damaged PNG: wrong CRC");
    if (type == "tEXt" && data.starts_with(kProvenanceKey)) {
      if (size > kProvenanceKey.size() + kMaxProvenance)
        refuse_image(name, "provenance over 1 MiB");
      if (!found.empty()) refuse_image(name, "two provenance chunks");
      found = data.substr(kProvenanceKey.size());
      if (found.empty() || !is_printable(found))
        refuse_image(name, "provenance: expected printable ASCII");
    }
    at += size + 12;
  }
}

}  // namespace sigma
