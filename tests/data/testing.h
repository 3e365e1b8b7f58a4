// What the tests of data sets share.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "sigma/io/images.h"
#include "tests/testing/errors.h"
#include "tests/testing/scratch.h"

namespace sigma::testing {

/// Every pixel `value`.
inline Image flat_image(int64_t height, int64_t width, int64_t channels, uint8_t value) {
  return {.height = height,
          .width = width,
          .channels = channels,
          .pixels = std::vector<uint8_t>(static_cast<size_t>(height * width * channels), value)};
}

inline std::string png(int64_t height, int64_t width, int64_t channels, uint8_t value) {
  return encode_png(flat_image(height, width, channels, value));
}

}  // namespace sigma::testing
