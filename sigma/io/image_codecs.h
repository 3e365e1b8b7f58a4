// What the image codecs share. Torch-free.
//
// libpng and libjpeg report errors by longjmp, which runs no destructors. So every function that
// calls setjmp holds nothing but plain values, and returns false to a C++ caller that owns the
// memory.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "sigma/io/images.h"

namespace sigma {

constexpr std::string_view kPngMagic("\x89PNG\r\n\x1a\n", 8);
constexpr std::string_view kJpegMagic("\xff\xd8\xff", 3);
constexpr std::string_view kProvenanceKey("sigma\0", 6);  // with its NUL

/// Throws kData, "NAME: what".
[[noreturn]] void refuse_image(const std::string& name, std::string_view what);
void check_image_limits(uint64_t height, uint64_t width, const DecodeLimits& limits,
                        const std::string& name);
bool is_printable(std::string_view text);
uint32_t big_endian(std::string_view bytes, size_t at);

Image decode_png(std::string_view bytes, const std::string& name, const DecodeLimits& limits);
Image decode_jpeg(std::string_view bytes, const std::string& name, const DecodeLimits& limits);

}  // namespace sigma
