// Drawing on pictures: images set in, lines, and a small font, for grids with captions and curves.
// Torch-free. What lies outside of the picture is left out. Not supported: smooth edges, letters
// beyond ASCII (drawn as boxes; small letters are drawn as capitals).
#pragma once

#include <cstdint>
#include <string>

#include "sigma/io/images.h"

namespace sigma {

struct Color {
  uint8_t r = 0, g = 0, b = 0;
};

/// A white picture.
Image white_image(int64_t height, int64_t width, int64_t channels);
/// `image` with its top left corner at (left, top), each pixel `scale` times as wide and high.
/// Errors: kUsage (other channels).
void draw_image(Image& onto, const Image& image, int64_t left, int64_t top, int64_t scale = 1);
/// The inverse: the image of `height` x `width` that is shown there; of each enlarged pixel its
/// top left one. Errors: kUsage (outside of the picture).
Image cut_image(const Image& from, int64_t height, int64_t width, int64_t left, int64_t top,
                int64_t scale = 1);
/// A line of `thickness` pixels between two points.
void draw_line(Image& onto, int64_t x0, int64_t y0, int64_t x1, int64_t y1, Color color,
               int64_t thickness = 1);
/// One line of text, top left corner at (left, top). A letter is 4 x 6 pixels with its gaps, times
/// `scale`.
void draw_text(Image& onto, const std::string& text, int64_t left, int64_t top, int64_t scale = 2,
               Color color = {});
int64_t text_width(const std::string& text, int64_t scale = 2);
int64_t text_height(int64_t scale = 2);

}  // namespace sigma
