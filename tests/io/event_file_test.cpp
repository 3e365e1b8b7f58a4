// Event files: golden bytes (as the protocol buffers and the checksum of the package tensorboard
// give them), and what a reader gets back from damaged and resumed ones.
#include "sigma/io/event_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>

#include "tests/testing/errors.h"
#include "tests/testing/event_reader.h"
#include "tests/testing/scratch.h"

namespace sigma {
namespace {

using testing::Event;
using testing::EventsRead;
using testing::parse_event_file;

constexpr double kTime = 1.7e9;

std::string from_hex(std::string_view hex) {
  std::string out;
  for (size_t i = 0; i < hex.size();) {
    if (hex[i] == ' ') {
      ++i;
      continue;
    }
    out += static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16));
    i += 2;
  }
  return out;
}

const std::string kVersion =
    from_hex("1800000000000000a37f4b22 0900000040fc54d9411a0d627261696e2e4576656e743a32 eced8f9d");
const std::string kLoss = from_hex(
    "1a00000000000000129bd82d 0900004040fc54d941100a2a0d0a0b0a046c6f7373150000003f 5dcadba0");
const std::string kPicture = from_hex(
    "2600000000000000734fe300 "
    "0900008040fc54d941100a2a190a170a0773616d706c6573220c080110011803220489504e47 1d1b9d0f");
const std::string kStart =
    from_hex("0f000000000000006d532b09 090000c040fc54d941100b3a020801 ca60a6f1");

TEST(EventFile, ChecksumsMatchTheVectors) {
  const auto unmasked = [](std::string_view bytes) {
    return std::rotl(masked_crc32c(bytes) - 0xA282EAD8u, 15);
  };
  EXPECT_EQ(unmasked("123456789"), 0xE3069283u);
  EXPECT_EQ(unmasked(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(masked_crc32c("\x1a\x11"
                          "CRC test, one two"),
            0x5794D08Au);
}

TEST(EventFile, GoldenBytesAndNames) {
  const Scratch folder;
  double time = kTime;
  const auto clock = [&time] { return time; };
  std::filesystem::path first, second;
  {
    EventFile file(folder.path("events"), clock);
    first = file.path();
    time = kTime + 1;
    file.scalar("loss", 0.5, 10);
    time = kTime + 2;
    file.image("samples", from_hex("89504e47"), 1, 1, 3, 10);
    time = kTime + 3;
    file.session_start(10);
    file.flush();
    EXPECT_EQ(read_file(first), kVersion + kLoss + kPicture + kStart);
    file.text("config", "a = 1", 10);
    file.scalar("loss", std::nan(""), 11);
  }
  EXPECT_TRUE(first.filename().string().starts_with("events.out.tfevents.1700000000.")) << first;
  const EventsRead all = parse_event_file(read_file(first));
  ASSERT_EQ(all.events.size(), 6u);
  EXPECT_FALSE(all.torn);
  EXPECT_EQ(all.events[2].values.at(0).png, from_hex("89504e47"));
  EXPECT_EQ(all.events[2].values.at(0).colorspace, 3);
  EXPECT_EQ(all.events[4].values.at(0).plugin, "text");
  EXPECT_EQ(all.events[4].values.at(0).text, "a = 1");
  EXPECT_TRUE(std::isnan(all.events[5].values.at(0).scalar.value()));

  // A clock that goes back, or stands: the new file still comes last.
  time = kTime - 100;
  for (int i = 1; i <= 3; ++i) {
    const EventFile file(folder.path("events"), clock);
    EXPECT_GT(file.path(), first);
    EXPECT_GT(file.path(), second);
    second = file.path();
    EXPECT_TRUE(second.filename().string().starts_with(
        fmt::format("events.out.tfevents.{}.", 1700000000 + i)));
  }
}

TEST(EventFile, DamageCostsAsLittleAsItCan) {
  const std::string whole = kVersion + kLoss + kPicture + kStart;
  // A torn tail: every whole record before it is read.
  const std::vector<size_t> ends = {0, kVersion.size(), (kVersion + kLoss).size(),
                                    (kVersion + kLoss + kPicture).size(), whole.size()};
  for (size_t size = 0; size <= whole.size(); ++size) {
    const EventsRead part = parse_event_file(std::string_view(whole).substr(0, size));
    const auto count =
        static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), size) - ends.begin() - 1);
    EXPECT_EQ(part.events.size(), count) << size;
    EXPECT_EQ(part.torn, ends[count] != size) << size;
  }
  // Any bit of a record's length or its checksum: the file ends there.
  for (size_t bit = 0; bit < 12 * 8; ++bit) {
    std::string bad = whole;
    bad[kVersion.size() + bit / 8] ^= static_cast<char>(1 << bit % 8);
    const EventsRead part = parse_event_file(bad);
    EXPECT_EQ(part.events.size(), 1u) << bit;
    EXPECT_TRUE(part.torn) << bit;
  }
  // Any bit of its data or their checksum: the record is skipped.
  for (size_t bit = 12 * 8; bit < kLoss.size() * 8; ++bit) {
    std::string bad = whole;
    bad[kVersion.size() + bit / 8] ^= static_cast<char>(1 << bit % 8);
    const EventsRead part = parse_event_file(bad);
    EXPECT_EQ(part.events.size(), 3u) << bit;
    EXPECT_EQ(part.skipped, 1) << bit;
    EXPECT_FALSE(part.torn) << bit;
  }
}

TEST(EventFile, AResumedRunIsOneCurve) {
  const Scratch folder;
  const auto write = [&](int64_t from, int64_t to, double value) {
    EventFile file(folder.path(), [] { return kTime; });
    if (from > 0) file.session_start(from);
    for (int64_t step = from + 1; step <= to; ++step) file.scalar("loss", value, step);
    file.flush();
    return file.path();
  };
  const auto first = write(0, 8, 1);
  std::filesystem::resize_file(first, std::filesystem::file_size(first) - 3);  // killed
  write(5, 9, 2);
  write(7, 10, 3);
  std::vector<std::pair<int64_t, float>> curve;
  for (const Event& event : testing::read_event_folder(folder.path()).events) {
    for (const auto& value : event.values) curve.emplace_back(event.step, value.scalar.value());
  }
  const std::vector<std::pair<int64_t, float>> expected = {{1, 1}, {2, 1}, {3, 1}, {4, 1}, {5, 1},
                                                           {6, 2}, {7, 2}, {8, 3}, {9, 3}, {10, 3}};
  EXPECT_EQ(curve, expected);
}

TEST(EventFile, ErrorsNameFileAndBytes) {
  const Scratch folder;
  folder.write("events", "a file");
  testing::expect_error(ErrorKind::kIo, "events",
                        [&] { const EventFile file(folder.path("events")); });
  const auto full = [&] {
    EventFile file(folder.path("full"));
    file.text("config", std::string(1 << 20, 'x'), 0);
    const rlimit old = [] {
      rlimit limit{};
      getrlimit(RLIMIT_FSIZE, &limit);
      return limit;
    }();
    const rlimit small{.rlim_cur = 1000, .rlim_max = old.rlim_max};
    const auto handler = signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    try {
      file.flush();
    } catch (...) {
      setrlimit(RLIMIT_FSIZE, &old);
      signal(SIGXFSZ, handler);
      throw;
    }
  };
  testing::expect_error(ErrorKind::kIo, "cannot write", full);
}

}  // namespace
}  // namespace sigma
