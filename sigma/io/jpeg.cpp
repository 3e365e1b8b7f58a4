// clang-format off: jpeglib.h needs the others before it
#include <cstddef>
#include <cstdio>
#include <jpeglib.h>
#include <jerror.h>
// clang-format on

#include <csetjmp>

#include "sigma/base/error.h"
#include "sigma/io/image_codecs.h"

namespace sigma {
namespace {

constexpr int kMaxScans = 100;

struct JpegReader {
  jpeg_decompress_struct jpeg{};
  jpeg_error_mgr errors{};
  jpeg_progress_mgr progress{};
  jmp_buf jump;
  char message[JMSG_LENGTH_MAX] = "";
  ~JpegReader() { jpeg_destroy_decompress(&jpeg); }
};

void jpeg_fail(j_common_ptr jpeg) {
  auto* state = static_cast<JpegReader*>(jpeg->client_data);
  jpeg->err->format_message(jpeg, state->message);
  std::longjmp(state->jump, 1);
}

/// libjpeg goes on after a warning, with invented pixels: refused, but for two that touch none.
void jpeg_message(j_common_ptr jpeg, int level) {
  const int code = jpeg->err->msg_code;
  if (level < 0 && code != JWRN_JFIF_MAJOR && code != JWRN_ADOBE_XFORM) jpeg_fail(jpeg);
}

/// A small progressive file can ask for thousands of passes over a large image.
void jpeg_progress(j_common_ptr jpeg) {
  auto* state = static_cast<JpegReader*>(jpeg->client_data);
  if (state->jpeg.input_scan_number <= kMaxScans) return;
  std::snprintf(state->message, sizeof state->message, "more than %d scans", kMaxScans);
  std::longjmp(state->jump, 1);
}

bool jpeg_begin(JpegReader* state, const char* bytes, size_t size) {
  state->jpeg.err = jpeg_std_error(&state->errors);
  state->errors.error_exit = jpeg_fail;
  state->errors.emit_message = jpeg_message;
  state->progress.progress_monitor = jpeg_progress;
  state->jpeg.client_data = state;
  if (setjmp(state->jump) != 0) return false;
  jpeg_create_decompress(&state->jpeg);  // keeps err and client_data
  state->jpeg.progress = &state->progress;
  jpeg_mem_src(&state->jpeg, reinterpret_cast<const unsigned char*>(bytes), size);
  jpeg_read_header(&state->jpeg, TRUE);
  return true;
}

bool jpeg_rows(JpegReader* state, uint8_t* out) {
  if (setjmp(state->jump) != 0) return false;
  jpeg_decompress_struct* jpeg = &state->jpeg;
  jpeg_start_decompress(jpeg);
  while (jpeg->output_scanline < jpeg->output_height) {
    const size_t row = size_t{jpeg->output_width} * static_cast<size_t>(jpeg->output_components);
    JSAMPROW pointer = out + jpeg->output_scanline * row;
    jpeg_read_scanlines(jpeg, &pointer, 1);
  }
  jpeg_finish_decompress(jpeg);
  return true;
}

}  // namespace

Image decode_jpeg(std::string_view bytes, const std::string& name, const DecodeLimits& limits) {
  JpegReader state;
  if (!jpeg_begin(&state, bytes.data(), bytes.size()))
    refuse_image(name, fmt::format("corrupt JPEG: {}", state.message));
  check_image_limits(state.jpeg.image_height, state.jpeg.image_width, limits, name);
  const J_COLOR_SPACE space = state.jpeg.jpeg_color_space;
  if (space == JCS_CMYK || space == JCS_YCCK) refuse_image(name, "JPEG in CMYK: not supported");
  if (space != JCS_GRAYSCALE && space != JCS_YCbCr && space != JCS_RGB)
    refuse_image(name, "JPEG in an unknown colour space: not supported");
  Image image;
  image.height = state.jpeg.image_height;
  image.width = state.jpeg.image_width;
  image.channels = space == JCS_GRAYSCALE ? 1 : 3;
  state.jpeg.out_color_space = space == JCS_GRAYSCALE ? JCS_GRAYSCALE : JCS_RGB;
  image.pixels.resize(static_cast<size_t>(image.height * image.width * image.channels));
  if (!jpeg_rows(&state, image.pixels.data()))
    refuse_image(name, fmt::format("corrupt JPEG: {}", state.message));
  return image;
}

}  // namespace sigma
