// Errors that a test expects.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "sigma/base/error.h"

namespace sigma::testing {

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

inline void expect_error(ErrorKind kind, const std::string& part,
                         const std::function<void()>& action) {
  expect_contains(error_of(kind, action), part);
}

}  // namespace sigma::testing
