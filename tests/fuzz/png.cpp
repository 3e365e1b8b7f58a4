// PNG files (and JPEG, by their magic bytes): pixels, and the provenance chunk. Checksums of chunks
// are put right after each mutation, or nothing behind them would be reached.
#include <zlib.h>

#include <algorithm>
#include <cstring>

#include "sigma/io/images.h"
#include "tests/fuzz/fuzz.h"

using namespace sigma;

namespace {

constexpr size_t kMagic = 8, kFrame = 12;  // of a chunk: length, type, checksum

uint32_t big_endian(const uint8_t* p) {
  return uint32_t{p[0]} << 24 | uint32_t{p[1]} << 16 | uint32_t{p[2]} << 8 | p[3];
}

}  // namespace

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned int seed) {
  size = LLVMFuzzerMutate(data, size, max_size);
  if (seed % 8 == 0) return size;  // some with wrong checksums
  size_t at = kMagic;
  while (size >= kFrame && at <= size - kFrame) {
    const size_t length = big_endian(data + at);
    if (length > size - kFrame - at) break;
    const uLong crc = crc32(0, data + at + 4, static_cast<uInt>(length + 4));
    for (size_t i = 0; i < 4; ++i)
      data[at + 8 + length + i] = static_cast<uint8_t>(crc >> (24 - 8 * i));
    at += kFrame + length;
  }
  return size;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes = fuzz::text(data, size);
  fuzz::may_refuse(ErrorKind::kData, [&] {
    // Small, so that a fuzzer does not spend its time on large empty images.
    const Image image = decode_image(bytes, "fuzz.png", {.max_side = 2048, .max_pixels = 1 << 16});
    fuzz::demand(
        static_cast<int64_t>(image.pixels.size()) == image.height * image.width * image.channels,
        "the pixels that the header promises");
    fuzz::demand(decode_image(encode_png(image), "again.png").pixels == image.pixels,
                 "the same pixels after writing them");
  });
  fuzz::may_refuse(ErrorKind::kData, [&] { read_provenance(bytes, "fuzz.png"); });
  return 0;
}
