// What the tests of data sets share.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "sigma/base/error.h"
#include "sigma/io/images.h"
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

/// The message and hint of the error of `kind` that `action` throws.
inline std::string error_of(ErrorKind kind, const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    return std::string(error.what()) + "\n" + error.hint();
  }
  ADD_FAILURE() << "no error";
  return "";
}

inline void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "\"" << part << "\" is not in: " << text;
}

}  // namespace sigma::testing
