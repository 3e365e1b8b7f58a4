#include "sigma/io/safetensors_header.h"

#include <algorithm>
#include <array>
#include <set>
#include <tuple>

#include "sigma/base/error.h"
#include "sigma/io/safetensors_json.h"

namespace sigma {
namespace {

constexpr uint64_t kMaxHeader = 100'000'000;
constexpr uint64_t kMaxSize = (uint64_t{1} << 63) - 1;

struct Dtype {
  std::string_view name;
  int bits;
};
// In alignment order: a writer sorts by it, descending.
constexpr std::array<Dtype, 22> kDtypes = {{
    {"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
    {"I32", 32},        {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},
    {"I64", 64},        {"U64", 64},
}};

size_t dtype_rank(std::string_view dtype) {
  size_t rank = 0;
  while (rank < kDtypes.size() && kDtypes[rank].name != dtype) ++rank;
  return rank;
}

/// Rules 6 to 10, in the reference's order.
void check_layout(const std::vector<SafetensorsEntry>& entries, uint64_t buffer_size) {
  uint64_t start = 0;
  for (const SafetensorsEntry& e : entries) {
    const std::string name = in_quotes(e.name);
    SIGMA_CHECK(kData, e.begin == start && e.end >= e.begin,
                "InvalidOffset: tensor {}: expected offsets [{}, e >= {}], got [{}, {}]", name,
                start, start, e.begin, e.end);
    start = e.end;
    uint64_t bits = 1;
    bool overflow = false;
    for (const uint64_t size : e.shape) overflow |= __builtin_mul_overflow(bits, size, &bits);
    overflow |= __builtin_mul_overflow(bits, static_cast<uint64_t>(dtype_bits(e.dtype)), &bits);
    // Stricter: a size beside a 0 must still fit in a signed one.
    for (const uint64_t size : e.shape) overflow |= size > kMaxSize;
    SIGMA_CHECK(kData, !overflow, "ValidationOverflow: tensor {}: {} [{}] does not fit in 64 bits",
                name, e.dtype, fmt::join(e.shape, ", "));
    SIGMA_CHECK(kData, bits % 8 == 0, "MisalignedSlice: tensor {}: {} bits are no whole bytes",
                name, bits);
    SIGMA_CHECK(kData, e.end - e.begin == bits / 8,
                "TensorInvalidInfo: tensor {}: {} [{}]: expected {} bytes, got {}", name, e.dtype,
                fmt::join(e.shape, ", "), bits / 8, e.end - e.begin);
  }
  SIGMA_CHECK(kData, start == buffer_size,
              "MetadataIncompleteBuffer: expected {} bytes of data, got {}", start, buffer_size);
}

void check_text(const std::string& what, std::string_view text) {
  SIGMA_CHECK(kUsage, valid_utf8(text) == text.size(), "safetensors: {} {}: not UTF-8", what,
              in_quotes(text));
}

void assign_offsets(std::vector<SafetensorsEntry>& entries) {
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    const size_t rank_a = dtype_rank(a.dtype), rank_b = dtype_rank(b.dtype);
    return rank_a != rank_b ? rank_a > rank_b : a.name < b.name;
  });
  std::set<std::string_view> names;
  uint64_t offset = 0;
  for (SafetensorsEntry& e : entries) {
    const std::string name = in_quotes(e.name);
    SIGMA_CHECK(kUsage,
                !e.name.empty() && e.name.size() <= kMaxName &&
                    e.name.find('\0') == std::string::npos && e.name != kMetadataKey,
                "safetensors: tensor {}: no valid name", name);
    check_text("tensor", e.name);
    SIGMA_CHECK(kUsage, names.insert(e.name).second, "safetensors: tensor {}: duplicate name",
                name);
    SIGMA_CHECK(kUsage, dtype_bits(e.dtype) != 0, "safetensors: tensor {}: unknown dtype \"{}\"",
                name, e.dtype);
    SIGMA_CHECK(kUsage, e.shape.size() <= kMaxRank,
                "safetensors: tensor {}: {} dimensions (most: {})", name, e.shape.size(), kMaxRank);
    uint64_t bits = static_cast<uint64_t>(dtype_bits(e.dtype));
    bool overflow = false;
    for (const uint64_t size : e.shape)
      overflow |= size > kMaxSize || __builtin_mul_overflow(bits, size, &bits);
    e.begin = offset;
    overflow |= __builtin_add_overflow(offset, bits / 8, &offset);
    SIGMA_CHECK(kUsage, !overflow && bits % 8 == 0, "safetensors: tensor {}: no valid size", name);
    e.end = offset;
  }
}

}  // namespace

int dtype_bits(std::string_view dtype) {
  const size_t rank = dtype_rank(dtype);
  return rank < kDtypes.size() ? kDtypes[rank].bits : 0;
}

uint64_t safetensors_header_length(std::string_view first_bytes, uint64_t file_size) {
  SIGMA_CHECK(kData, file_size >= 8 && first_bytes.size() >= 8,
              "HeaderTooSmall: expected at least 8 bytes, got {}", file_size);
  uint64_t length = 0;
  for (size_t i = 8; i-- > 0;) length = length << 8 | static_cast<uint8_t>(first_bytes[i]);
  SIGMA_CHECK(kData, length <= kMaxHeader, "HeaderTooLarge: expected at most {} bytes, got {}",
              kMaxHeader, length);
  SIGMA_CHECK(kData, length <= file_size - 8,
              "InvalidHeaderLength: a header of {} bytes in a file of {}", length, file_size);
  return length;
}

SafetensorsHeader parse_safetensors_header(std::string_view json, uint64_t file_size) {
  SIGMA_CHECK(kData, file_size >= 8 && json.size() <= file_size - 8,
              "InvalidHeaderLength: a header of {} bytes in a file of {}", json.size(), file_size);
  const size_t valid = valid_utf8(json);
  SIGMA_CHECK(kData, valid == json.size(), "InvalidHeader: not UTF-8 at byte {} of the header",
              valid);
  SafetensorsHeader header = parse_safetensors_json(json);
  header.data_start = 8 + json.size();
  std::sort(header.entries.begin(), header.entries.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  check_layout(header.entries, file_size - header.data_start);
  return header;
}

std::string build_safetensors_header(std::vector<SafetensorsEntry>& entries,
                                     const std::map<std::string, std::string>& metadata) {
  SIGMA_CHECK(kUsage, entries.size() <= kMaxTensors, "safetensors: {} tensors (most: {})",
              entries.size(), kMaxTensors);
  assign_offsets(entries);
  std::string out(8, '\0');
  out += '{';
  if (!metadata.empty()) {
    append_quoted(out, kMetadataKey);
    out += ':';
    char separator = '{';
    for (const auto& [key, value] : metadata) {
      check_text("metadata", key);
      check_text("metadata", value);
      out += separator;
      append_quoted(out, key);
      out += ':';
      append_quoted(out, value);
      separator = ',';
    }
    out += '}';
  }
  for (const SafetensorsEntry& e : entries) {
    if (out.back() != '{') out += ',';
    append_quoted(out, e.name);
    out += fmt::format(R"(:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", e.dtype,
                       fmt::join(e.shape, ","), e.begin, e.end);
  }
  out += '}';
  out.append((8 - out.size() % 8) % 8, ' ');
  const uint64_t length = out.size() - 8;
  SIGMA_CHECK(kUsage, length <= kMaxHeader, "safetensors: a header of {} bytes (most: {})", length,
              kMaxHeader);
  for (size_t i = 0; i < 8; ++i) out[i] = static_cast<char>(length >> (8 * i));
  return out;
}

}  // namespace sigma
