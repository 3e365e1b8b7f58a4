// The names and the manifest of a checkpoint folder: what its writer and its reader share.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "sigma/base/error.h"

namespace sigma {

constexpr int64_t kCheckpointFormat = 1;
constexpr const char* kTensorSuffix = ".safetensors";

/// Not a broken checkpoint: one that an older program must not pass over in silence.
struct NewerFormat : Error {
  using Error::Error;
};

/// 123 -> "0000123"
std::string step_text(int64_t step);
/// "123" -> 123
std::optional<int64_t> parse_digits(std::string_view text);
/// "step-0000123" -> 123
std::optional<int64_t> parse_step(const std::string& name);
/// A plain name inside a folder: no path, not hidden.
bool is_file_name(const std::string& name);

}  // namespace sigma
