#include "sigma/io/image_draw.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "sigma/base/error.h"

namespace sigma {
namespace {

constexpr int64_t kLetterWidth = 3, kLetterHeight = 5;
constexpr int64_t kLetterStep = kLetterWidth + 1, kLineStep = kLetterHeight + 1;

struct Glyph {
  char letter;
  uint16_t rows;  // five octal digits, top to bottom; bit 4 is the left pixel
};

constexpr Glyph kFont[] = {
    {' ', 000000}, {'!', 022202}, {'%', 051245}, {'(', 012221}, {')', 042224}, {'*', 005250},
    {'+', 002720}, {',', 000024}, {'-', 000700}, {'.', 000002}, {'/', 011244}, {'0', 075557},
    {'1', 026227}, {'2', 071747}, {'3', 071717}, {'4', 055711}, {'5', 074717}, {'6', 074757},
    {'7', 071122}, {'8', 075757}, {'9', 075717}, {':', 002020}, {'<', 012421}, {'=', 007070},
    {'>', 042124}, {'A', 025755}, {'B', 065656}, {'C', 034443}, {'D', 065556}, {'E', 074647},
    {'F', 074644}, {'G', 034553}, {'H', 055755}, {'I', 072227}, {'J', 011152}, {'K', 055655},
    {'L', 044447}, {'M', 057755}, {'N', 065555}, {'O', 025552}, {'P', 065644}, {'Q', 025563},
    {'R', 065655}, {'S', 034216}, {'T', 072222}, {'U', 055557}, {'V', 055552}, {'W', 055775},
    {'X', 055255}, {'Y', 055222}, {'Z', 071247}, {'_', 000007},
};
constexpr uint16_t kUnknown = 075557;

uint16_t rows_of(char letter) {
  const char capital =
      letter >= 'a' && letter <= 'z' ? static_cast<char>(letter - 'a' + 'A') : letter;
  const auto* found = std::find_if(std::begin(kFont), std::end(kFont),
                                   [&](const Glyph& glyph) { return glyph.letter == capital; });
  return found == std::end(kFont) ? kUnknown : found->rows;
}

void fill(Image& onto, int64_t left, int64_t top, int64_t height, int64_t width, Color color) {
  const uint8_t rgb[] = {color.r, color.g, color.b};
  // Grey pictures show the brightness.
  const auto grey = static_cast<uint8_t>((299 * color.r + 587 * color.g + 114 * color.b) / 1000);
  for (int64_t y = std::max<int64_t>(top, 0); y < std::min(top + height, onto.height); ++y) {
    for (int64_t x = std::max<int64_t>(left, 0); x < std::min(left + width, onto.width); ++x) {
      uint8_t* to = onto.pixels.data() + (y * onto.width + x) * onto.channels;
      if (onto.channels == 3) std::copy_n(rgb, 3, to);
      else *to = grey;
    }
  }
}

}  // namespace

Image white_image(int64_t height, int64_t width, int64_t channels) {
  return {.height = height,
          .width = width,
          .channels = channels,
          .pixels = std::vector<uint8_t>(static_cast<size_t>(height * width * channels), 255)};
}

void draw_image(Image& onto, const Image& image, int64_t left, int64_t top, int64_t scale) {
  SIGMA_CHECK(kUsage, onto.channels == image.channels, "picture: expected {} channels, got {}",
              onto.channels, image.channels);
  const int64_t channels = image.channels;
  for (int64_t y = 0; y < image.height * scale; ++y) {
    for (int64_t x = 0; x < image.width * scale; ++x) {
      const int64_t to_y = top + y, to_x = left + x;
      if (to_y < 0 || to_y >= onto.height || to_x < 0 || to_x >= onto.width) continue;
      std::copy_n(image.pixels.data() + (y / scale * image.width + x / scale) * channels, channels,
                  onto.pixels.data() + (to_y * onto.width + to_x) * channels);
    }
  }
}

Image cut_image(const Image& from, int64_t height, int64_t width, int64_t left, int64_t top,
                int64_t scale) {
  SIGMA_CHECK(kUsage,
              left >= 0 && top >= 0 && scale >= 1 && left <= from.width && top <= from.height &&
                  height <= (from.height - top) / scale && width <= (from.width - left) / scale,
              "picture: expected an image of {}x{} pixels, {} times enlarged, at {},{} inside of "
              "{}x{}",
              width, height, scale, left, top, from.width, from.height);
  Image out = white_image(height, width, from.channels);
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x)
      std::copy_n(
          from.pixels.data() + ((top + y * scale) * from.width + left + x * scale) * from.channels,
          from.channels, out.pixels.data() + (y * width + x) * from.channels);
  }
  return out;
}

void draw_line(Image& onto, int64_t x0, int64_t y0, int64_t x1, int64_t y1, Color color,
               int64_t thickness) {
  const int64_t length = std::max<int64_t>({std::abs(x1 - x0), std::abs(y1 - y0), 1});
  const auto between = [&](int64_t a, int64_t b, int64_t i) {
    const int64_t way = (b - a) * i;
    return a + (2 * way + (way < 0 ? -length : length)) / (2 * length);  // rounded
  };
  for (int64_t i = 0; i <= length; ++i)
    fill(onto, between(x0, x1, i) - thickness / 2, between(y0, y1, i) - thickness / 2, thickness,
         thickness, color);
}

void draw_text(Image& onto, const std::string& text, int64_t left, int64_t top, int64_t scale,
               Color color) {
  for (const char letter : text) {
    const uint16_t rows = rows_of(letter);
    for (int64_t y = 0; y < kLetterHeight; ++y) {
      for (int64_t x = 0; x < kLetterWidth; ++x) {
        const int64_t bit = 3 * (kLetterHeight - 1 - y) + (kLetterWidth - 1 - x);
        if ((rows >> bit & 1) != 0)
          fill(onto, left + x * scale, top + y * scale, scale, scale, color);
      }
    }
    left += kLetterStep * scale;
  }
}

int64_t text_width(const std::string& text, int64_t scale) {
  return std::max<int64_t>(0, static_cast<int64_t>(text.size()) * kLetterStep - 1) * scale;
}

int64_t text_height(int64_t scale) { return kLineStep * scale; }

}  // namespace sigma
