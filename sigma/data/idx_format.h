// The IDX format of MNIST and its kin, plain or gzip-compressed. Torch-free.
//
//   00 00 | type u8 | rank u8 | rank sizes u32 big-endian | data, row-major, big-endian
//
// Gzip files may have several members. A truncated stream, a wrong CRC and bytes after the data are
// errors; inflating stops one byte past the size that the header promises. Not supported: types
// other than u8 and i32, ranks above 4.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace sigma {

enum class IdxType : uint8_t { kByte = 0x08, kInt32 = 0x0C };

struct IdxArray {
  IdxType type = IdxType::kByte;
  std::vector<int64_t> sizes;
  std::string file;        // the whole file, decompressed
  size_t data_offset = 0;  // of the first element in it
};

/// Parses the bytes of a file; `name` is used in messages. Errors: kData with file, offset,
/// expected, actual.
IdxArray read_idx(std::string bytes, const std::string& name);

/// Demands images: u8, [n,Y,X] or [n,Y,X,1 or 3], no size 0. Errors: kData.
void check_idx_images(const IdxArray& array, const std::string& name);

/// The labels of a rank-1 array of u8 or i32. Errors: kData (another rank, a label outside [0,
/// max_classes)).
std::vector<int64_t> idx_labels(const IdxArray& array, const std::string& name,
                                int64_t max_classes);

}  // namespace sigma
