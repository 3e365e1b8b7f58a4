// Errors with a kind, an exit code and, where one helps, a hint.
//
// Everything that goes wrong is a sigma::Error thrown by SIGMA_CHECK or fail(); the program maps it
// to an exit code in one place (cli/main.cpp). A message reads "what: expected E, got A (file,
// tensor or key)".
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace sigma {

/// The value is the exit code of the program.
enum class ErrorKind {
  kFailure = 1,     ///< anything else
  kUsage = 2,       ///< bad flag, key, value or recipe; a run of another configuration
  kData = 3,        ///< data missing, corrupt or changed
  kCheckpoint = 4,  ///< no checkpoint verifies; incompatible; newer format
  kDevice = 5,      ///< no such device, out of memory, CUDA error
  kNonFinite = 6,   ///< NaN or Inf where the policy says stop
  kIo = 7,          ///< disk full; read, write, fsync or rename failed; run locked
};

/// "usage", "data", ...: the name used in JSON.
const char* kind_name(ErrorKind kind);

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message, std::string hint = "")
      : std::runtime_error(message), kind_(kind), hint_(std::move(hint)) {}
  ErrorKind kind() const { return kind_; }
  int exit_code() const { return static_cast<int>(kind_); }
  const std::string& hint() const { return hint_; }

 private:
  ErrorKind kind_;
  std::string hint_;
};

/// Throws Error(kind, formatted message).
template <typename... Args>
[[noreturn]] void fail(ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(kind, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace sigma

/// SIGMA_CHECK(kUsage, n > 0, "batch: expected at least 1, got {}", n);
#define SIGMA_CHECK(kind, condition, ...)                   \
  do {                                                      \
    if (!(condition)) [[unlikely]]                          \
      ::sigma::fail(::sigma::ErrorKind::kind, __VA_ARGS__); \
  } while (false)
