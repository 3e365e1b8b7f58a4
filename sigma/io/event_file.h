// TensorBoard event files: scalars, images and text that the real TensorBoard reads. Torch-free; the
// protocol buffers are written by hand.
//
//   record   u64 length | u32 m(length bytes) | data | u32 m(data), little-endian;
//            m = masked CRC-32C (tensorboard/summary/writer/record_writer.py)
//   data     Event{1 wall_time f64; 2 step; 3 file_version | 5 summary | 7 session_log{1 status}}
//
// A file is named events.out.tfevents.TIME.HOST.PID.UID. Readers take the files of a folder in the
// order of their names, so a new one has a TIME above all others; a torn tail in an old one is then
// harmless. Not supported: histograms, appending to an existing file.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace sigma {

/// rot(c, 17) + 0xA282EAD8 with c = CRC-32C (Castagnoli) of `bytes`.
uint32_t masked_crc32c(std::string_view bytes);

class EventFile {
 public:
  /// A new file in `folder`, which is created where it is missing. `now` gives seconds since 1970.
  /// Errors: kIo.
  explicit EventFile(const std::filesystem::path& folder, std::function<double()> now = {});
  /// Writes what is pending; errors are lost here, so call flush() before.
  ~EventFile();
  EventFile(const EventFile&) = delete;
  EventFile& operator=(const EventFile&) = delete;

  /// First after a resume from `step` batches done: readers forget the steps after it.
  void session_start(int64_t step);
  /// Each tag once a step, steps rising.
  void scalar(const std::string& tag, double value, int64_t step);
  /// A PNG of that size; channels: 1 grey, 3 RGB.
  void image(const std::string& tag, std::string_view png, int64_t height, int64_t width,
             int64_t channels, int64_t step);
  /// Markdown, for the text tab.
  void text(const std::string& tag, std::string_view markdown, int64_t step);
  /// Everything so far is in the file. Happens by itself when an event comes 5 s after the last
  /// one. Errors: kIo with path and bytes.
  void flush();

  const std::filesystem::path& path() const { return path_; }

 private:
  void event(int64_t step, int field, std::string_view message);
  std::filesystem::path path_;
  std::function<double()> now_;
  int descriptor_ = -1;
  std::string pending_;
  std::chrono::steady_clock::time_point flushed_;
};

}  // namespace sigma
