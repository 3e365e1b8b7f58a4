#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "sigma/base/error.h"
#include "sigma/data/idx_format.h"

namespace sigma {
namespace {

std::string bytes_of(const std::vector<int>& values) { return {values.begin(), values.end()}; }

std::string big_endian(uint32_t value) {
  return bytes_of(
      {int(value >> 24), int(value >> 16 & 255), int(value >> 8 & 255), int(value & 255)});
}

std::string idx(int type, const std::vector<uint32_t>& sizes, const std::string& data) {
  std::string file = bytes_of({0, 0, type, static_cast<int>(sizes.size())});
  for (const uint32_t size : sizes) file += big_endian(size);
  return file + data;
}

// 2 images of 2x3, pixels 0..11.
std::string two_images() {
  return idx(0x08, {2, 2, 3}, bytes_of({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}));
}

std::string little_endian(uint32_t value, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += static_cast<char>(value >> (8 * i));
  return text;
}

uint32_t crc32_of(const std::string& bytes) {
  uint32_t crc = ~0u;
  for (const char c : bytes) {
    crc ^= static_cast<uint8_t>(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
  }
  return ~crc;
}

// A gzip member with one stored block: no compressor needed.
std::string gzip(const std::string& bytes) {
  const auto size = static_cast<uint32_t>(bytes.size());
  return bytes_of({0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 1}) + little_endian(size, 2) +
         little_endian(~size, 2) + bytes + little_endian(crc32_of(bytes), 4) +
         little_endian(size, 4);
}

// The message of the kData error that `action` throws.
std::string data_error(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

void expect_refused(const std::string& file, const std::vector<std::string>& parts) {
  const std::string message = data_error([&] { read_idx(file, "some.idx"); });
  EXPECT_NE(message.find("some.idx"), std::string::npos) << message;
  for (const std::string& part : parts)
    EXPECT_NE(message.find(part), std::string::npos) << part << " in: " << message;
}

TEST(Idx, ReadsPlainAndGzip) {
  for (const std::string& file : {two_images(), gzip(two_images())}) {
    const IdxArray array = read_idx(file, "some.idx");
    EXPECT_EQ(array.sizes, (std::vector<int64_t>{2, 2, 3}));
    EXPECT_EQ(array.file, two_images());
    EXPECT_EQ(array.data_offset, 16u);
    EXPECT_NO_THROW(check_idx_images(array, "some.idx"));
  }
}

TEST(Idx, ReadsSeveralGzipMembers) {
  const std::string file = two_images();
  // Borders inside the header, inside the data, and an empty member.
  const std::string members =
      gzip(file.substr(0, 5)) + gzip("") + gzip(file.substr(5, 15)) + gzip(file.substr(20));
  EXPECT_EQ(read_idx(members, "some.idx").file, file);
}

TEST(Idx, RefusesEveryTruncation) {
  const std::string plain = two_images();
  for (size_t size = 0; size < plain.size(); ++size)
    expect_refused(plain.substr(0, size), {"expected", "got"});
  const std::string packed = gzip(plain);
  for (size_t size = 2; size < packed.size(); ++size) {
    expect_refused(packed.substr(0, size),
                   {"gzip", "the end of the file", fmt::format("offset {}", size)});
  }
}

TEST(Idx, RefusesDamagedGzip) {
  std::string crc = gzip(two_images());
  crc[crc.size() - 8] = static_cast<char>(crc[crc.size() - 8] ^ 1);
  expect_refused(crc, {"gzip", "incorrect data check"});
  std::string length = gzip(two_images());
  length[length.size() - 1] = 1;
  expect_refused(length, {"gzip", "incorrect length check"});
  // The CRC of a member in the middle counts too.
  std::string first = gzip(two_images().substr(0, 9));
  first[first.size() - 8] = static_cast<char>(first[first.size() - 8] ^ 1);
  expect_refused(first + gzip(two_images().substr(9)), {"incorrect data check"});
  expect_refused(gzip(two_images()) + "junk", {"gzip"});
}

TEST(Idx, RefusesTrailingBytes) {
  expect_refused(two_images() + '\0', {"28 bytes", "got more", "offset 28"});
  expect_refused(gzip(two_images() + '\0'), {"28 bytes", "got more"});
  // Inflating stops one byte past the promised size: the damage far behind it is not reached.
  std::string bomb = gzip(two_images()) + gzip(std::string(60000, 'x')) + "never looked at";
  expect_refused(bomb, {"got more"});
}

TEST(Idx, RefusesWrongHeaders) {
  std::string magic = two_images();
  magic[1] = 8;
  expect_refused(magic, {"00 00", "00 08", "offset 0"});
  expect_refused(idx(0x0D, {1}, "abcd"), {"type", "0d", "offset 2"});
  expect_refused(idx(0x08, {}, ""), {"rank", "got 0", "offset 3"});
  expect_refused(idx(0x08, {1, 1, 1, 1, 1}, "a"), {"rank", "got 5", "offset 3"});
  expect_refused(idx(0x08, {3, 2, 3}, std::string(12, 'a')), {"expected 18 bytes", "got 12"});
  expect_refused(idx(0x0C, {3}, std::string(11, 'a')), {"expected 12 bytes", "got 11"});
  const uint32_t huge = 0xffffffff;
  expect_refused(idx(0x08, {huge, huge, huge}, ""), {"product below 2^63", "offset 4"});
  expect_refused(idx(0x08, {0x80000000, huge, 1}, ""), {"expected", "got 0"});
}

TEST(Idx, ImagesHaveThreeSizesOrChannels) {
  const auto refused = [](const std::string& file) {
    const IdxArray array = read_idx(file, "some.idx");
    return data_error([&] { check_idx_images(array, "some.idx"); });
  };
  EXPECT_NO_THROW(
      check_idx_images(read_idx(idx(0x08, {1, 1, 1, 3}, "abc"), "some.idx"), "some.idx"));
  EXPECT_NE(refused(idx(0x08, {1, 1, 1, 2}, "ab")).find("1 x 1 x 1 x 2"), std::string::npos);
  EXPECT_NE(refused(idx(0x08, {2}, "ab")).find("some.idx"), std::string::npos);
  EXPECT_NE(refused(idx(0x08, {2, 0, 2}, "")).find("at least 1"), std::string::npos);
  EXPECT_NE(refused(idx(0x0C, {1, 1, 1}, "abcd")).find("type 08"), std::string::npos);
}

TEST(Idx, LabelsAreChecked) {
  const IdxArray bytes = read_idx(idx(0x08, {3}, bytes_of({0, 9, 200})), "some.idx");
  EXPECT_EQ(idx_labels(bytes, "some.idx", 201), (std::vector<int64_t>{0, 9, 200}));
  const std::string message = data_error([&] { idx_labels(bytes, "some.idx", 10); });
  EXPECT_NE(message.find("expected [0, 10), got 200 (some.idx, offset 10)"), std::string::npos)
      << message;

  const IdxArray wide =
      read_idx(idx(0x0C, {2}, big_endian(1000) + big_endian(0xffffffff)), "some.idx");
  const std::string negative = data_error([&] { idx_labels(wide, "some.idx", 2000); });
  EXPECT_NE(negative.find("got -1 (some.idx, offset 12)"), std::string::npos) << negative;

  const IdxArray images = read_idx(two_images(), "some.idx");
  EXPECT_NE(data_error([&] { idx_labels(images, "some.idx", 10); }).find("rank 1"),
            std::string::npos);
}

}  // namespace
}  // namespace sigma
