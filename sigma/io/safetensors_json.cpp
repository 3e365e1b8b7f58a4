#include "sigma/io/safetensors_json.h"

#include <set>
#include <utility>

#include "sigma/base/error.h"

namespace sigma {
namespace {

/// Reads the one shape a header has, so that nesting needs no limit: anything deeper is not that
/// shape.
class HeaderParser {
 public:
  explicit HeaderParser(std::string_view text) : text_(text) {}

  SafetensorsHeader parse() {
    SafetensorsHeader header;
    std::set<std::string> names;
    members([&](const std::string& name) {
      once(names.insert(name).second, name);
      where_ = &name;
      if (name == kMetadataKey) {
        parse_metadata(header.metadata);
      } else {
        header.entries.push_back(parse_entry(name));
        if (header.entries.size() > kMaxTensors) error("more than 2^20 tensors");
      }
      where_ = nullptr;
    });
    skip_space();
    if (at_ != text_.size()) error("trailing bytes after the object");
    return header;
  }

 private:
  [[noreturn]] void error(const std::string& what) const {
    std::string where;
    if (where_ != nullptr)
      where = (*where_ == kMetadataKey ? "" : "tensor ") + in_quotes(*where_) + ": ";
    fail(ErrorKind::kData, "InvalidHeaderDeserialization: {}{} (byte {} of the header)", where,
         what, at_);
  }
  void once(bool fresh, const std::string& key) const {
    if (!fresh) error("duplicate key " + in_quotes(key));
  }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  void skip_space() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r'))
      ++at_;
  }
  void expect(char wanted) {
    skip_space();
    if (at_ == text_.size()) error(fmt::format("expected '{}', got the end", wanted));
    if (peek() != wanted)
      error(fmt::format("expected '{}', got byte {:02x}", wanted, static_cast<uint8_t>(peek())));
    ++at_;
  }
  bool take(char wanted) {
    skip_space();
    if (peek() != wanted) return false;
    ++at_;
    return true;
  }

  template <typename Member>
  void members(Member member) {
    expect('{');
    if (take('}')) return;
    do {
      const std::string key = parse_string();
      expect(':');
      member(key);
    } while (take(','));
    expect('}');
  }

  void parse_metadata(std::map<std::string, std::string>& metadata) {
    members(
        [&](const std::string& key) { once(metadata.emplace(key, parse_string()).second, key); });
  }

  SafetensorsEntry parse_entry(const std::string& name) {
    if (name.empty()) error("the name is empty");
    if (name.size() > kMaxName) error("the name is longer than 1024 bytes");
    if (name.find('\0') != std::string::npos) error("the name contains NUL");
    SafetensorsEntry entry;
    entry.name = name;
    constexpr std::string_view kKeys[] = {"dtype", "shape", "data_offsets"};
    bool seen[3] = {};
    members([&](const std::string& key) {
      for (size_t i = 0; i < 3; ++i)
        if (key == kKeys[i]) once(!std::exchange(seen[i], true), key);
      if (key == "dtype") {
        entry.dtype = parse_string();
        if (dtype_bits(entry.dtype) == 0) error("unknown dtype " + in_quotes(entry.dtype));
      } else if (key == "shape") {
        entry.shape = parse_numbers(kMaxRank, "more than 16 dimensions");
      } else if (key == "data_offsets") {
        const std::vector<uint64_t> offsets = parse_numbers(2, "data_offsets: expected 2 numbers");
        if (offsets.size() != 2) error("data_offsets: expected 2 numbers");
        entry.begin = offsets[0];
        entry.end = offsets[1];
      } else {
        error("unknown key " + in_quotes(key));
      }
    });
    for (size_t i = 0; i < 3; ++i)
      if (!seen[i]) error(fmt::format("missing key \"{}\"", kKeys[i]));
    return entry;
  }

  std::vector<uint64_t> parse_numbers(size_t most, const char* too_many) {
    std::vector<uint64_t> numbers;
    expect('[');
    if (take(']')) return numbers;
    do {
      if (numbers.size() == most) error(too_many);
      numbers.push_back(parse_number());
    } while (take(','));
    expect(']');
    return numbers;
  }

  uint64_t parse_number() {
    skip_space();
    const size_t start = at_;
    uint64_t value = 0;
    for (; peek() >= '0' && peek() <= '9'; ++at_)
      if (__builtin_mul_overflow(value, uint64_t{10}, &value) ||
          __builtin_add_overflow(value, static_cast<uint64_t>(peek() - '0'), &value))
        error("a number does not fit in 64 bits");
    if (at_ == start) error("expected a non-negative integer");
    if (text_[start] == '0' && at_ - start > 1) error("a number starts with 0");
    if (peek() == '.' || peek() == 'e' || peek() == 'E') error("expected an integer, got a float");
    return value;
  }

  std::string parse_string() {
    expect('"');
    std::string out;
    for (;;) {
      if (at_ == text_.size()) error("a string does not end");
      const char c = text_[at_];
      if (static_cast<uint8_t>(c) < 0x20) error("a control character in a string");
      ++at_;
      if (c == '"') return out;
      if (c == '\\') parse_escape(out);
      else out += c;
    }
  }

  void parse_escape(std::string& out) {
    constexpr std::string_view kFrom = "\"\\/bfnrt", kTo = "\"\\/\b\f\n\r\t";
    const char c = peek();
    if (const size_t found = kFrom.find(c); c != '\0' && found != std::string_view::npos) {
      out += kTo[found];
      ++at_;
      return;
    }
    if (c != 'u') error("an unknown escape");
    uint32_t code = parse_hex();
    if (code >= 0xDC00 && code < 0xE000) error("a lone surrogate");
    if (code >= 0xD800 && code < 0xDC00) {
      if (text_.substr(at_, 2) != "\\u") error("a lone surrogate");
      ++at_;
      const uint32_t low = parse_hex();
      if (low < 0xDC00 || low >= 0xE000) error("a lone surrogate");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    if (code < 0x80) {
      out += static_cast<char>(code);
      return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    constexpr uint8_t kLead[] = {0, 0xC0, 0xE0, 0xF0};
    out += static_cast<char>(kLead[more] | code >> (6 * more));
    for (int i = more - 1; i >= 0; --i) out += static_cast<char>(0x80 | (code >> (6 * i) & 0x3F));
  }

  uint32_t parse_hex() {  // at the 'u'
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i) {
      ++at_;
      const char c = peek();
      if (c >= '0' && c <= '9') code = code << 4 | static_cast<uint32_t>(c - '0');
      else if (c >= 'a' && c <= 'f') code = code << 4 | static_cast<uint32_t>(c - 'a' + 10);
      else if (c >= 'A' && c <= 'F') code = code << 4 | static_cast<uint32_t>(c - 'A' + 10);
      else error("a broken \\u escape");
    }
    ++at_;
    return code;
  }

  std::string_view text_;
  size_t at_ = 0;
  const std::string* where_ = nullptr;  // the member that is being read
};

}  // namespace

/// The length of the valid UTF-8 prefix (no surrogates, no overlong forms, at most U+10FFFF).
size_t valid_utf8(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  size_t at = 0;
  while (at < text.size()) {
    const uint8_t lead = byte(at);
    size_t more = 0;
    uint8_t low = 0x80, high = 0xBF;  // of the second byte
    if (lead < 0x80) more = 0;
    else if (lead >= 0xC2 && lead <= 0xDF) more = 1;
    else if (lead >= 0xE0 && lead <= 0xEF) more = 2;
    else if (lead >= 0xF0 && lead <= 0xF4) more = 3;
    else return at;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
    if (text.size() - at <= more) return at;
    for (size_t i = 1; i <= more; ++i, low = 0x80, high = 0xBF)
      if (byte(at + i) < low || byte(at + i) > high) return at;
    at += more + 1;
  }
  return at;
}

void append_quoted(std::string& out, std::string_view text) {
  out += '"';
  for (const char c : text) switch (c) {
      case '"': out += "\\\""; break;
      case '\\': out += "\\\\"; break;
      case '\b': out += "\\b"; break;
      case '\f': out += "\\f"; break;
      case '\n': out += "\\n"; break;
      case '\r': out += "\\r"; break;
      case '\t': out += "\\t"; break;
      default:
        if (static_cast<uint8_t>(c) < 0x20) out += fmt::format("\\u{:04x}", c);
        else out += c;
    }
  out += '"';
}

std::string in_quotes(std::string_view text) {
  std::string out;
  append_quoted(out, text.substr(0, kMaxName));
  return out;
}

SafetensorsHeader parse_safetensors_json(std::string_view text) {
  return HeaderParser(text).parse();
}

}  // namespace sigma
