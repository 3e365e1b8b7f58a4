// A small reader of TensorBoard event files, as strict as TensorBoard's own: a torn tail or a bad
// length checksum ends a file, a bad data checksum skips a record, a message that does not parse
// skips it too. Any bytes may come in. Torch-free.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "sigma/io/event_file.h"
#include "sigma/io/files.h"

namespace sigma::testing {

struct EventValue {
  std::string tag;
  std::optional<float> scalar;
  int64_t height = 0, width = 0, colorspace = 0;  // of an image
  std::string png;
  std::string plugin;  // "text" of a text
  std::string text;
};

struct Event {
  double wall_time = 0;
  int64_t step = 0;
  std::string file_version;
  bool start = false;  // session_log START
  std::vector<EventValue> values;
};

struct EventsRead {
  std::vector<Event> events;
  int skipped = 0;    // records with a bad data checksum, or that do not parse
  bool torn = false;  // the file ended early: a short record or a bad length checksum
};

/// Walks the fields of a protocol buffer.
class ProtoFields {
 public:
  explicit ProtoFields(std::string_view bytes) : rest_(bytes) {}
  /// The next field; false at the end and at bytes that do not parse (then bad()).
  bool next() {
    if (rest_.empty() || bad_) return false;
    const uint64_t key = varint();
    field = static_cast<int64_t>(key >> 3);
    data = {};
    switch (key & 7) {
      case 0: number = varint(); break;
      case 1: data = take(8); break;
      case 2: data = take(varint()); break;
      case 5: data = take(4); break;
      default: bad_ = true;
    }
    return !bad_;
  }
  bool bad() const { return bad_; }

  int64_t field = 0;
  uint64_t number = 0;    // of a varint
  std::string_view data;  // of the other kinds

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
      const auto byte = static_cast<uint8_t>(rest_[0]);
      rest_.remove_prefix(1);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    bad_ = true;
    return 0;
  }
  std::string_view take(uint64_t size) {
    if (size > rest_.size()) bad_ = true;
    if (bad_) return {};
    const std::string_view out = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return out;
  }

  std::string_view rest_;
  bool bad_ = false;
};

template <typename T>
T from_little_endian(std::string_view bytes) {
  T out = 0;
  for (size_t i = 0; i < std::min(sizeof(T), bytes.size()); ++i)
    out |= static_cast<T>(static_cast<uint8_t>(bytes[i])) << (8 * i);
  return out;
}

inline bool parse_value(std::string_view bytes, EventValue& out) {
  bool good = true;
  const auto visit = [&good](std::string_view message, const auto& use) {
    ProtoFields f(message);
    while (f.next()) use(f);
    good = good && !f.bad();
  };
  visit(bytes, [&](const ProtoFields& f) {
    if (f.field == 1) out.tag = f.data;
    if (f.field == 2) out.scalar = std::bit_cast<float>(from_little_endian<uint32_t>(f.data));
    if (f.field == 4) {
      visit(f.data, [&](const ProtoFields& image) {
        if (image.field == 1) out.height = static_cast<int64_t>(image.number);
        if (image.field == 2) out.width = static_cast<int64_t>(image.number);
        if (image.field == 3) out.colorspace = static_cast<int64_t>(image.number);
        if (image.field == 4) out.png = image.data;
      });
    }
    if (f.field == 8) {
      visit(f.data, [&](const ProtoFields& tensor) {
        if (tensor.field == 8) out.text = tensor.data;
      });
    }
    if (f.field == 9) {
      visit(f.data, [&](const ProtoFields& metadata) {
        if (metadata.field != 1) return;
        visit(metadata.data, [&](const ProtoFields& plugin) {
          if (plugin.field == 1) out.plugin = plugin.data;
        });
      });
    }
  });
  return good;
}

inline bool parse_event(std::string_view bytes, Event& out) {
  ProtoFields f(bytes);
  bool good = true;
  while (f.next()) {
    if (f.field == 1) out.wall_time = std::bit_cast<double>(from_little_endian<uint64_t>(f.data));
    if (f.field == 2) out.step = static_cast<int64_t>(f.number);
    if (f.field == 3) out.file_version = f.data;
    if (f.field == 5) {
      ProtoFields summary(f.data);
      while (summary.next()) {
        if (summary.field != 1) continue;
        out.values.emplace_back();
        good = parse_value(summary.data, out.values.back()) && good;
      }
      good = good && !summary.bad();
    }
    if (f.field == 7) {
      ProtoFields log(f.data);
      while (log.next()) out.start = out.start || (log.field == 1 && log.number == 1);
      good = good && !log.bad();
    }
  }
  return good && !f.bad();
}

/// The events of one file's bytes.
inline EventsRead parse_event_file(std::string_view bytes) {
  constexpr size_t kHead = 12, kTail = 4;
  EventsRead out;
  while (!bytes.empty()) {
    out.torn = true;
    if (bytes.size() < kHead) return out;
    const std::string_view length = bytes.substr(0, 8);
    if (masked_crc32c(length) != from_little_endian<uint32_t>(bytes.substr(8, 4))) return out;
    const auto size = from_little_endian<uint64_t>(length);
    if (size > bytes.size() - kHead || bytes.size() - kHead - size < kTail) return out;
    const std::string_view data = bytes.substr(kHead, size);
    const auto crc = from_little_endian<uint32_t>(bytes.substr(kHead + size, kTail));
    Event event;
    if (masked_crc32c(data) == crc && parse_event(data, event)) out.events.push_back(event);
    else ++out.skipped;
    bytes.remove_prefix(kHead + size + kTail);
    out.torn = false;
  }
  return out;
}

/// All files of a folder in the order of their names. As TensorBoard's reader in Python does, a
/// START at step s drops the events from step s on that came before it.
inline EventsRead read_event_folder(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  EventsRead out;
  for (const auto& file : files) {
    const EventsRead part = parse_event_file(read_file(file));
    out.skipped += part.skipped;
    out.torn = out.torn || part.torn;
    for (const Event& event : part.events) {
      if (event.start) {
        std::erase_if(out.events,
                      [&](const Event& e) { return !e.values.empty() && e.step >= event.step; });
      }
      out.events.push_back(event);
    }
  }
  return out;
}

}  // namespace sigma::testing
