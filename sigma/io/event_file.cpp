#include "sigma/io/event_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <system_error>

#include "sigma/base/error.h"
#include "sigma/io/files.h"

namespace sigma {
namespace {

constexpr const char* kPrefix = "events.out.tfevents.";
constexpr auto kFlushEvery = std::chrono::seconds(5);

// Fields of the protocol buffers (tensorboard/compat/proto/{event,summary,tensor}.proto).
constexpr int kWallTime = 1, kStep = 2, kFileVersion = 3, kSummary = 5, kSessionLog = 7;
constexpr int kTag = 1, kSimpleValue = 2, kImage = 4, kTensor = 8, kMetadata = 9;

constexpr std::array<uint32_t, 256> kCrcTable = [] {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ ((c & 1) ? 0x82F63B78u : 0);
    table[i] = c;
  }
  return table;
}();

template <typename T>
std::string little_endian(T value) {
  std::string out;
  for (size_t i = 0; i < sizeof(T); ++i) out += static_cast<char>(value >> (8 * i));
  return out;
}

std::string varint(uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  return out += static_cast<char>(value);
}

enum Wire : uint8_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };
std::string key(int field, Wire wire) { return varint(static_cast<uint64_t>(field << 3 | wire)); }
std::string integer(int field, int64_t value) {
  return key(field, kVarint) + varint(static_cast<uint64_t>(value));
}
std::string bytes(int field, std::string_view value) {
  return key(field, kBytes) + varint(value.size()) + std::string(value);
}

std::string host_name() {
  char name[256] = {};
  if (::gethostname(name, sizeof name - 1) != 0 || name[0] == '\0') return "localhost";
  std::string host = name;
  for (char& c : host) {
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '-') c = '_';
  }
  return host;
}

// The largest TIME of the event files in `folder`; -1 if there are none.
int64_t newest_time(const std::filesystem::path& folder) {
  int64_t newest = -1;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kPrefix)) continue;
    int64_t time = -1;
    std::from_chars(name.data() + std::string_view(kPrefix).size(), name.data() + name.size(),
                    time);
    newest = std::max(newest, time);
  }
  return newest;
}

double system_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace

uint32_t masked_crc32c(std::string_view bytes) {
  uint32_t c = 0xFFFFFFFFu;
  for (const char byte : bytes) c = (c >> 8) ^ kCrcTable[(c ^ static_cast<uint8_t>(byte)) & 0xFF];
  return std::rotr(~c, 15) + 0xA282EAD8u;
}

EventFile::EventFile(const std::filesystem::path& folder, std::function<double()> now)
    : now_(now ? std::move(now) : system_seconds), flushed_(std::chrono::steady_clock::now()) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  SIGMA_CHECK(kIo, !error, "{}: cannot be created: {}", folder.string(), error.message());
  const int64_t time = std::max(static_cast<int64_t>(now_()), newest_time(folder) + 1);
  for (int uid = 0; descriptor_ < 0; ++uid) {
    path_ = folder / fmt::format("{}{:010}.{}.{}.{}", kPrefix, time, host_name(), ::getpid(), uid);
    descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    SIGMA_CHECK(kIo, descriptor_ >= 0 || errno == EEXIST || errno == EINTR, "{}: cannot create: {}",
                path_.string(), std::generic_category().message(errno));
  }
  event(0, kFileVersion, "brain.Event:2");
}

EventFile::~EventFile() {
  try {
    flush();
  } catch (const Error&) {  // a destructor must not throw
  }
  ::close(descriptor_);
}

void EventFile::event(int64_t step, int field, std::string_view message) {
  std::string data = key(kWallTime, kFixed64) + little_endian(std::bit_cast<uint64_t>(now_()));
  if (step != 0) data += integer(kStep, step);
  data += bytes(field, message);
  const std::string length = little_endian<uint64_t>(data.size());
  pending_ += length + little_endian(masked_crc32c(length));
  pending_ += data + little_endian(masked_crc32c(data));
  if (std::chrono::steady_clock::now() - flushed_ >= kFlushEvery) flush();
}

void EventFile::session_start(int64_t step) {
  constexpr int kStatus = 1, kStart = 1;
  event(step + 1, kSessionLog, integer(kStatus, kStart));
}

void EventFile::scalar(const std::string& tag, double value, int64_t step) {
  const auto bits = std::bit_cast<uint32_t>(static_cast<float>(value));
  event(step, kSummary,
        bytes(1, bytes(kTag, tag) + key(kSimpleValue, kFixed32) + little_endian(bits)));
}

void EventFile::image(const std::string& tag, std::string_view png, int64_t height, int64_t width,
                      int64_t channels, int64_t step) {
  const std::string image =
      integer(1, height) + integer(2, width) + integer(3, channels) + bytes(4, png);
  event(step, kSummary, bytes(1, bytes(kTag, tag) + bytes(kImage, image)));
}

void EventFile::text(const std::string& tag, std::string_view markdown, int64_t step) {
  constexpr int kString = 7, kTensorClass = 2;  // DataType DT_STRING, DataClass DATA_CLASS_TENSOR
  const std::string shape = bytes(2, integer(1, 1));
  const std::string tensor = integer(1, kString) + bytes(2, shape) + bytes(8, markdown);
  const std::string metadata = bytes(1, bytes(1, "text")) + integer(4, kTensorClass);
  event(step, kSummary,
        bytes(1, bytes(kTag, tag) + bytes(kTensor, tensor) + bytes(kMetadata, metadata)));
}

void EventFile::flush() {
  flushed_ = std::chrono::steady_clock::now();
  // A failed write may have left half a record, after which a reader of this file would stop: what
  // was pending is dropped with it, never written twice.
  const std::string out = std::move(pending_);
  pending_.clear();
  write_all(descriptor_, out.data(), out.size(), path_);
}

}  // namespace sigma
