#include "sigma/data/idx_format.h"

#include <zlib.h>

#include <algorithm>
#include <new>

#include "sigma/base/error.h"

namespace sigma {
namespace {

constexpr size_t kMagicBytes = 4;
constexpr size_t kMaxRank = 4;
constexpr size_t kChunk = size_t{1} << 20;  // inflated, or fed to zlib, at once

uint8_t byte_at(const std::string& bytes, size_t offset) {
  return static_cast<uint8_t>(bytes[offset]);
}

uint32_t big_endian(const std::string& bytes, size_t offset) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value = value << 8 | byte_at(bytes, offset + i);
  return value;
}

// gzread would take a truncated file for a short one, so the stream is driven by hand.
class GzipReader {
 public:
  GzipReader(const std::string& bytes, const std::string& name) : bytes_(bytes), name_(name) {
    constexpr int kGzipOnly = 16;
    if (inflateInit2(&stream_, MAX_WBITS + kGzipOnly) != Z_OK) throw std::bad_alloc();
  }
  ~GzipReader() { inflateEnd(&stream_); }
  GzipReader(const GzipReader&) = delete;
  GzipReader& operator=(const GzipReader&) = delete;

  /// Appends to `out` until it has `size` bytes or the file ends. At the end the CRC of every
  /// member has been checked.
  void fill(std::string& out, size_t size) {
    while (out.size() < size && !done_) {
      const size_t before = out.size();
      const size_t room = std::min(size - before, kChunk);
      out.resize(before + room);
      const int code = inflate_into(out.data() + before, room);
      out.resize(before + room - stream_.avail_out);
      if (code == Z_STREAM_END) {
        done_ = position() == bytes_.size();
        inflateReset(&stream_);
      } else if (code == Z_MEM_ERROR) {
        throw std::bad_alloc();
      } else if (code != Z_OK) {
        const char* got = code == Z_BUF_ERROR ? "the end of the file" : stream_.msg;
        fail(ErrorKind::kData,
             "gzip: expected a complete, undamaged stream, got {} ({}, offset {})",
             got ? got : "damage", name_, position());
      }
    }
  }

 private:
  size_t position() const { return fed_ - stream_.avail_in; }

  int inflate_into(char* out, size_t room) {
    if (stream_.avail_in == 0) {
      const size_t count = std::min(bytes_.size() - fed_, kChunk);
      stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes_.data() + fed_));
      stream_.avail_in = static_cast<uInt>(count);
      fed_ += count;
    }
    stream_.next_out = reinterpret_cast<Bytef*>(out);
    stream_.avail_out = static_cast<uInt>(room);
    return inflate(&stream_, Z_NO_FLUSH);
  }

  const std::string& bytes_;
  const std::string& name_;
  z_stream stream_{};
  size_t fed_ = 0;
  bool done_ = false;
};

// The bytes of the header in `file`, once `fill` has provided them.
template <typename Fill>
void read_header(IdxArray& array, const std::string& name, Fill&& fill) {
  const std::string& file = array.file;
  fill(kMagicBytes);
  SIGMA_CHECK(kData, file.size() >= kMagicBytes,
              "IDX header: expected at least {} bytes, got {} ({}, offset 0)", kMagicBytes,
              file.size(), name);
  SIGMA_CHECK(kData, byte_at(file, 0) == 0 && byte_at(file, 1) == 0,
              "IDX magic: expected 00 00, got {:02x} {:02x} ({}, offset 0)", byte_at(file, 0),
              byte_at(file, 1), name);
  array.type = static_cast<IdxType>(byte_at(file, 2));
  SIGMA_CHECK(kData, array.type == IdxType::kByte || array.type == IdxType::kInt32,
              "IDX type: expected 08 (u8) or 0c (i32), got {:02x} ({}, offset 2)", byte_at(file, 2),
              name);
  const size_t rank = byte_at(file, 3);
  SIGMA_CHECK(kData, rank >= 1 && rank <= kMaxRank,
              "IDX rank: expected 1 to {}, got {} ({}, offset 3)", kMaxRank, rank, name);
  array.data_offset = kMagicBytes + 4 * rank;
  fill(array.data_offset);
  SIGMA_CHECK(kData, file.size() >= array.data_offset,
              "IDX header: expected {} bytes, got {} ({}, offset {})", array.data_offset,
              file.size(), name, file.size());
  for (size_t i = 0; i < rank; ++i) array.sizes.push_back(big_endian(file, kMagicBytes + 4 * i));
}

// Of the whole file, as the header promises.
size_t promised_bytes(const IdxArray& array, const std::string& name) {
  int64_t bytes = array.type == IdxType::kByte ? 1 : 4;
  bool overflow = false;
  for (const int64_t size : array.sizes) overflow |= __builtin_mul_overflow(bytes, size, &bytes);
  overflow |= __builtin_add_overflow(bytes, static_cast<int64_t>(array.data_offset) + 1, &bytes);
  SIGMA_CHECK(kData, !overflow, "IDX sizes: expected a product below 2^63, got {} ({}, offset {})",
              fmt::join(array.sizes, " x "), name, kMagicBytes);
  return static_cast<size_t>(bytes) - 1;
}

}  // namespace

IdxArray read_idx(std::string bytes, const std::string& name) {
  IdxArray array;
  size_t promised = 0;
  if (bytes.starts_with("\x1f\x8b")) {
    GzipReader gzip(bytes, name);
    const auto fill = [&](size_t size) { gzip.fill(array.file, size); };
    read_header(array, name, fill);
    promised = promised_bytes(array, name);
    fill(promised + 1);
  } else {
    array.file = std::move(bytes);
    read_header(array, name, [](size_t) {});
    promised = promised_bytes(array, name);
  }
  const size_t actual = array.file.size();
  SIGMA_CHECK(kData, actual >= promised,
              "IDX data: expected {} bytes for sizes {}, got {} ({}, offset {})",
              promised - array.data_offset, fmt::join(array.sizes, " x "),
              actual - array.data_offset, name, actual);
  SIGMA_CHECK(kData, actual == promised,
              "IDX data: expected the end of the file after {} bytes, got more ({}, offset {})",
              promised, name, promised);
  return array;
}

void check_idx_images(const IdxArray& array, const std::string& name) {
  const auto& sizes = array.sizes;
  SIGMA_CHECK(kData, array.type == IdxType::kByte,
              "IDX images: expected type 08 (u8), got {:02x} ({}, offset 2)",
              static_cast<int>(array.type), name);
  SIGMA_CHECK(
      kData, sizes.size() == 3 || (sizes.size() == 4 && (sizes[3] == 1 || sizes[3] == 3)),
      "IDX images: expected sizes n x Y x X or n x Y x X x (1 or 3), got {} ({}, offset {})",
      fmt::join(sizes, " x "), name, kMagicBytes);
  SIGMA_CHECK(kData, std::find(sizes.begin(), sizes.end(), 0) == sizes.end(),
              "IDX images: expected sizes of at least 1, got {} ({}, offset {})",
              fmt::join(sizes, " x "), name, kMagicBytes);
}

std::vector<int64_t> idx_labels(const IdxArray& array, const std::string& name,
                                int64_t max_classes) {
  SIGMA_CHECK(kData, array.sizes.size() == 1, "IDX labels: expected rank 1, got {} ({}, offset 3)",
              array.sizes.size(), name);
  const size_t width = array.type == IdxType::kByte ? 1 : 4;
  std::vector<int64_t> labels(static_cast<size_t>(array.sizes[0]));
  for (size_t i = 0; i < labels.size(); ++i) {
    const size_t offset = array.data_offset + i * width;
    labels[i] = width == 1 ? byte_at(array.file, offset)
                           : static_cast<int32_t>(big_endian(array.file, offset));
    SIGMA_CHECK(kData, labels[i] >= 0 && labels[i] < max_classes,
                "label: expected [0, {}), got {} ({}, offset {})", max_classes, labels[i], name,
                offset);
  }
  return labels;
}

}  // namespace sigma
