// The JSON of a safetensors header: strict parsing, and the text helpers that its writer shares.
// Torch-free.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "sigma/io/safetensors_header.h"

namespace sigma {

constexpr size_t kMaxTensors = size_t{1} << 20;
constexpr size_t kMaxName = 1024;
constexpr size_t kMaxRank = 16;
constexpr const char* kMetadataKey = "__metadata__";

/// The length of the valid UTF-8 prefix (no surrogates, no overlong forms, at most U+10FFFF).
size_t valid_utf8(std::string_view text);
/// Appends a JSON string that escapes only ", \\ and control characters.
void append_quoted(std::string& out, std::string_view text);
/// A name for a message: the same, cut at kMaxName bytes.
std::string in_quotes(std::string_view text);

/// Entries in the order of the text, offsets unchecked. Errors: kData,
/// "InvalidHeaderDeserialization: tensor "x": ...".
SafetensorsHeader parse_safetensors_json(std::string_view text);

}  // namespace sigma
