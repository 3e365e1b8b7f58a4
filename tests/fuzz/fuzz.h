// What the fuzzers share: hostile input may be refused with an Error of the right kind, and nothing
// else may happen.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "sigma/base/error.h"

namespace sigma::fuzz {

inline std::string_view text(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

/// Ends the process, as a fuzzer's finding, unless `condition` holds.
inline void demand(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "fuzz: expected %s\n", what);
  std::abort();
}

/// Runs `body`, which may fail with an Error of `kind`.
template <typename F>
void may_refuse(ErrorKind kind, const F& body) {
  try {
    body();
  } catch (const Error& error) {
    demand(error.kind() == kind, "an error of another kind");
  }
}

}  // namespace sigma::fuzz
