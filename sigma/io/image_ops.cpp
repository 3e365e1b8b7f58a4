// Operations on decoded images.
#include <algorithm>
#include <cmath>

#include "sigma/base/error.h"
#include "sigma/io/image_draw.h"
#include "sigma/io/images.h"

namespace sigma {
namespace {

// Fixed point as Pillow's Resample.c, so that equal inputs give its bytes: 8 bits of value, 2 of
// head room, the rest fraction.
constexpr int kFractionBits = 32 - 8 - 2;

double box(double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

struct Filter {
  double (*weight)(double);
  double support;
};
constexpr Filter kBox = {box, 0.5};
constexpr Filter kBicubic = {bicubic, 2.0};

struct Taps {
  int64_t first = 0;
  std::vector<int32_t> weights;
};

/// One axis of a resampling: `from` pixels to `to`, of which `count` are kept from `first` on.
struct Axis {
  int64_t from, to, first, count;
};

/// The weights of every kept pixel; a reduction widens the filter (antialiasing).
std::vector<Taps> make_taps(const Axis& axis, const Filter& filter) {
  const auto [from, to, kept_first, kept_count] = axis;
  const double scale = static_cast<double>(from) / static_cast<double>(to);
  const double filter_scale = std::max(scale, 1.0);
  const double support = filter.support * filter_scale;
  const double inverse = 1.0 / filter_scale;
  std::vector<Taps> taps(static_cast<size_t>(kept_count));
  for (int64_t i = 0; i < kept_count; ++i) {
    const double center = (static_cast<double>(kept_first + i) + 0.5) * scale;
    const int64_t first = std::max<int64_t>(static_cast<int64_t>(center - support + 0.5), 0);
    const int64_t last = std::min<int64_t>(static_cast<int64_t>(center + support + 0.5), from);
    std::vector<double> weights;
    double sum = 0.0;
    for (int64_t x = first; x < last; ++x) {
      weights.push_back(filter.weight((static_cast<double>(x) - center + 0.5) * inverse));
      sum += weights.back();
    }
    Taps& out = taps[static_cast<size_t>(i)];
    out.first = first;
    for (double weight : weights) {
      if (sum != 0.0) weight /= sum;
      out.weights.push_back(
          static_cast<int32_t>(weight * (1 << kFractionBits) + (weight < 0 ? -0.5 : 0.5)));
    }
  }
  return taps;
}

/// Resamples the middle axis of [outer, axis.from, inner].
std::vector<uint8_t> resample_axis(const std::vector<uint8_t>& in, int64_t outer, const Axis& axis,
                                   int64_t inner, const Filter& filter) {
  const std::vector<Taps> taps = make_taps(axis, filter);
  std::vector<uint8_t> out(static_cast<size_t>(outer * axis.count * inner));
  std::vector<int32_t> sums(static_cast<size_t>(inner));
  uint8_t* to = out.data();
  for (int64_t o = 0; o < outer; ++o) {
    for (const Taps& tap : taps) {
      std::fill(sums.begin(), sums.end(), 1 << (kFractionBits - 1));
      const uint8_t* row = in.data() + (o * axis.from + tap.first) * inner;
      for (const int32_t weight : tap.weights)
        for (int32_t& sum : sums) sum += *row++ * weight;
      for (const int32_t sum : sums)
        *to++ = static_cast<uint8_t>(std::clamp(sum >> kFractionBits, 0, 255));
    }
  }
  return out;
}

/// Only the kept pixels are computed: a long thin image would grow beyond all memory.
Image resize(const Image& image, const Axis& rows, const Axis& columns, const Filter& filter) {
  Image out{rows.count, columns.count, image.channels, {}};
  out.pixels = resample_axis(image.pixels, image.height, columns, image.channels, filter);
  out.pixels = resample_axis(out.pixels, 1, rows, columns.count * image.channels, filter);
  return out;
}

}  // namespace

Image image_grid(const std::vector<Image>& images, int64_t columns, int64_t gap, int64_t scale) {
  SIGMA_CHECK(kUsage, !images.empty(), "image grid: no images");
  SIGMA_CHECK(kUsage, columns >= 1 && gap >= 0 && scale >= 1,
              "image grid: columns {}, gap {}, scale {}", columns, gap, scale);
  const int64_t count = static_cast<int64_t>(images.size());
  columns = std::min(columns, count);
  const int64_t rows = (count + columns - 1) / columns;
  const int64_t height = images[0].height, width = images[0].width, channels = images[0].channels;
  Image out = white_image(rows * height * scale + (rows - 1) * gap,
                          columns * width * scale + (columns - 1) * gap, channels);
  for (int64_t i = 0; i < count; ++i) {
    const Image& image = images[static_cast<size_t>(i)];
    SIGMA_CHECK(kUsage,
                image.height == height && image.width == width && image.channels == channels,
                "image grid: expected {}x{}x{}, got {}x{}x{} (image {})", height, width, channels,
                image.height, image.width, image.channels, i);
    draw_image(out, image, i % columns * (width * scale + gap),
               i / columns * (height * scale + gap), scale);
  }
  return out;
}

Image with_channels(const Image& image, int64_t channels) {
  SIGMA_CHECK(kUsage, channels == 1 || channels == 3, "channels: expected 1 or 3, got {}",
              channels);
  if (image.channels == channels) return image;
  Image out{image.height, image.width, channels, {}};
  const size_t count = static_cast<size_t>(image.height * image.width);
  out.pixels.reserve(count * static_cast<size_t>(channels));
  for (size_t i = 0; i < count; ++i) {
    if (channels == 3) {
      out.pixels.insert(out.pixels.end(), 3, image.pixels[i]);
    } else {
      const uint8_t* p = &image.pixels[3 * i];
      out.pixels.push_back(
          static_cast<uint8_t>((299 * p[0] + 587 * p[1] + 114 * p[2] + 500) / 1000));
    }
  }
  return out;
}

Image center_crop(const Image& image, int64_t size) {
  SIGMA_CHECK(kUsage, size >= 1, "centre crop: expected a size of at least 1, got {}", size);
  SIGMA_CHECK(kUsage, image.height >= 1 && image.width >= 1, "centre crop: empty image");
  Image scaled = image;
  const auto half = [](int64_t side) { return Axis{side, side / 2, 0, side / 2}; };
  while (std::min(scaled.height, scaled.width) >= 2 * size)
    scaled = resize(scaled, half(scaled.height), half(scaled.width), kBox);
  const double scale =
      static_cast<double>(size) / static_cast<double>(std::min(scaled.height, scaled.width));
  const auto crop = [&](int64_t side) {
    const auto to = static_cast<int64_t>(std::nearbyint(static_cast<double>(side) * scale));
    return Axis{side, to, (to - size) / 2, size};
  };
  return resize(scaled, crop(scaled.height), crop(scaled.width), kBicubic);
}

}  // namespace sigma
