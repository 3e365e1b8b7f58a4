// The safetensors header: strict parsing and deterministic writing. Torch-free, so that it can be
// fuzzed alone.
//
// Layout: u64 little-endian N | N bytes of JSON | byte buffer. Every rule of the reference
// implementation is checked in its order, and some stricter ones; an Error (kData) begins with the
// reference's name of the rule ("InvalidOffset: ...").
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace sigma {

struct SafetensorsEntry {
  std::string name;
  std::string dtype;  // "F32"
  std::vector<uint64_t> shape;
  uint64_t begin = 0;  // offsets in the byte buffer
  uint64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // by offset
  std::map<std::string, std::string> metadata;
  uint64_t data_start = 0;  // 8 + N
};

/// Bits of an element; 0 for an unknown dtype.
int dtype_bits(std::string_view dtype);

/// N from the first 8 bytes of a file of `file_size` bytes. Errors: HeaderTooSmall, HeaderTooLarge,
/// InvalidHeaderLength.
uint64_t safetensors_header_length(std::string_view first_bytes, uint64_t file_size);
/// Parses and checks the N header bytes of a file of `file_size` bytes.
SafetensorsHeader parse_safetensors_header(std::string_view json, uint64_t file_size);
/// The header of `entries` (offsets are assigned here: dtype descending, then name), length prefix
/// included. `entries` is reordered to the order of the buffer.
std::string build_safetensors_header(std::vector<SafetensorsEntry>& entries,
                                     const std::map<std::string, std::string>& metadata);

}  // namespace sigma
