#include <png.h>

#include <cstdio>
#include <cstring>
#include <vector>

#include "sigma/base/error.h"
#include "sigma/io/image_codecs.h"

namespace sigma {
namespace {

constexpr size_t kMessage = 256;

struct PngReader {
  png_structp png = nullptr;
  png_infop info = nullptr;
  const char* bytes = nullptr;
  size_t size = 0;
  size_t at = 0;
  char message[kMessage] = "corrupt PNG";
  ~PngReader() { png_destroy_read_struct(&png, &info, nullptr); }
};

template <typename State>
void png_fail(png_structp png, png_const_charp message) {
  auto* state = static_cast<State*>(png_get_error_ptr(png));
  std::snprintf(state->message, kMessage, "corrupt PNG: %s", message);
  png_longjmp(png, 1);
}

void png_ignore(png_structp, png_const_charp) {}

void png_take(png_structp png, png_bytep out, size_t count) {
  auto* state = static_cast<PngReader*>(png_get_io_ptr(png));
  if (count > state->size - state->at) png_error(png, "truncated");
  std::memcpy(out, state->bytes + state->at, count);
  state->at += count;
}

/// Reads up to the pixels and asks for rows of 8-bit grey, grey-alpha, RGB or RGBA; says how many
/// channels.
bool png_begin(PngReader* state, int max_side, int* channels) {
  state->png =
      png_create_read_struct(PNG_LIBPNG_VER_STRING, state, png_fail<PngReader>, png_ignore);
  if (state->png == nullptr) return false;
  if (setjmp(png_jmpbuf(state->png)) != 0) return false;
  png_structp png = state->png;
  state->info = png_create_info_struct(png);
  if (state->info == nullptr) return false;
  png_set_read_fn(png, state, png_take);
  png_set_user_limits(png, static_cast<png_uint_32>(max_side), static_cast<png_uint_32>(max_side));
  png_set_benign_errors(png, 0);
  png_set_crc_action(png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
  // Colour profiles, texts and the like are not even unpacked.
  png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);
  png_read_info(png, state->info);
  png_set_expand(png);
  png_set_scale_16(png);
  png_set_interlace_handling(png);
  png_read_update_info(png, state->info);
  *channels = png_get_channels(png, state->info);
  return png_get_bit_depth(png, state->info) == 8;
}

bool png_rows(PngReader* state, png_bytepp rows) {
  if (setjmp(png_jmpbuf(state->png)) != 0) return false;
  png_read_image(state->png, rows);
  png_read_end(state->png, nullptr);
  return true;
}

/// Lays `colors` + alpha over the background, in place: [c..., a] -> [c...].
void lay_over(Image& image, size_t colors, const uint8_t* background) {
  const size_t count = static_cast<size_t>(image.height * image.width);
  for (size_t i = 0; i < count; ++i) {
    const int alpha = image.pixels[i * (colors + 1) + colors];
    for (size_t c = 0; c < colors; ++c)
      image.pixels[i * colors + c] = static_cast<uint8_t>(
          (image.pixels[i * (colors + 1) + c] * alpha + background[c] * (255 - alpha) + 127) / 255);
  }
  image.pixels.resize(count * colors);
  image.channels = static_cast<int64_t>(colors);
}

struct PngWriter {
  png_structp png = nullptr;
  png_infop info = nullptr;
  std::string* out = nullptr;
  char message[kMessage] = "no PNG encoder";
  ~PngWriter() { png_destroy_write_struct(&png, &info); }
};

void png_put(png_structp png, png_bytep bytes, size_t count) {
  auto* state = static_cast<PngWriter*>(png_get_io_ptr(png));
  bool done = true;
  try {
    state->out->append(reinterpret_cast<const char*>(bytes), count);
  } catch (const std::exception&) {
    done = false;
  }
  if (!done) png_error(png, "out of memory");
}

bool png_write(PngWriter* state, const Image* image, const char* chunk, size_t chunk_size) {
  state->png =
      png_create_write_struct(PNG_LIBPNG_VER_STRING, state, png_fail<PngWriter>, png_ignore);
  if (state->png == nullptr) return false;
  if (setjmp(png_jmpbuf(state->png)) != 0) return false;
  png_structp png = state->png;
  state->info = png_create_info_struct(png);
  if (state->info == nullptr) return false;
  png_set_write_fn(png, state, png_put, nullptr);
  png_set_compression_level(png, 6);
  png_set_IHDR(png, state->info, static_cast<png_uint_32>(image->width),
               static_cast<png_uint_32>(image->height), 8,
               image->channels == 1 ? PNG_COLOR_TYPE_GRAY : PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  png_write_info(png, state->info);
  if (chunk_size > 0)
    png_write_chunk(png, reinterpret_cast<png_const_bytep>("tEXt"),
                    reinterpret_cast<png_const_bytep>(chunk), chunk_size);
  for (int64_t y = 0; y < image->height; ++y)
    png_write_row(png, image->pixels.data() + y * image->width * image->channels);
  png_write_end(png, nullptr);
  return true;
}

}  // namespace

Image decode_png(std::string_view bytes, const std::string& name, const DecodeLimits& limits) {
  // magic, then the chunk IHDR: length, type, width, height
  if (bytes.size() < 33 || bytes.substr(12, 4) != "IHDR")
    refuse_image(name, "corrupt PNG: no header");
  check_image_limits(big_endian(bytes, 20), big_endian(bytes, 16), limits, name);
  PngReader state;
  state.bytes = bytes.data();
  state.size = bytes.size();
  int channels = 0;
  if (!png_begin(&state, static_cast<int>(limits.max_side), &channels))
    refuse_image(name, state.message);
  Image image;
  image.height = png_get_image_height(state.png, state.info);
  image.width = png_get_image_width(state.png, state.info);
  image.channels = channels;
  const size_t row = static_cast<size_t>(image.width * channels);
  image.pixels.resize(row * static_cast<size_t>(image.height));
  std::vector<png_bytep> rows;
  for (size_t y = 0; y < static_cast<size_t>(image.height); ++y)
    rows.push_back(image.pixels.data() + y * row);
  if (!png_rows(&state, rows.data())) refuse_image(name, state.message);
  if (channels == 2 || channels == 4) {
    const uint8_t* b = limits.background;
    if (channels == 2 && (b[0] != b[1] || b[0] != b[2])) {
      Image color{image.height, image.width, 4, {}};
      for (size_t i = 0; i < image.pixels.size(); i += 2) {
        color.pixels.insert(color.pixels.end(), 3, image.pixels[i]);
        color.pixels.push_back(image.pixels[i + 1]);
      }
      image = std::move(color);
    }
    lay_over(image, static_cast<size_t>(image.channels) - 1, b);
  }
  return image;
}

std::string encode_png(const Image& image, const std::string& provenance) {
  SIGMA_CHECK(kUsage, image.channels == 1 || image.channels == 3,
              "PNG: expected 1 or 3 channels, got {}", image.channels);
  SIGMA_CHECK(
      kUsage,
      image.height >= 1 && image.width >= 1 &&
          static_cast<int64_t>(image.pixels.size()) == image.height * image.width * image.channels,
      "PNG: expected {}x{}x{} bytes, got {}", image.height, image.width, image.channels,
      image.pixels.size());
  SIGMA_CHECK(kUsage, provenance.size() <= kMaxProvenance && is_printable(provenance),
              "PNG: expected provenance of at most 1 MiB of printable ASCII, got {} bytes",
              provenance.size());
  std::string chunk;
  if (!provenance.empty()) chunk = std::string(kProvenanceKey) + provenance;
  std::string out;
  PngWriter state;
  state.out = &out;
  SIGMA_CHECK(kFailure, png_write(&state, &image, chunk.data(), chunk.size()), "{}", state.message);
  return out;
}

}  // namespace sigma
