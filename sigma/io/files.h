// Whole files, atomically: sibling temporary, fsync, rename, fsync of the folder. Torch-free.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "sigma/base/sha256.h"

namespace sigma {

/// A new file, written in pieces and hashed on the way. An atomic one is a sibling temporary until
/// finish(). Either is removed if finish() is never reached.
class FileWriter {
 public:
  enum class Mode { kAtomic, kInPlace };
  FileWriter(std::filesystem::path path, Mode mode);
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;
  /// Errors: kIo with path and bytes.
  void write(const void* data, size_t size);
  /// Syncs, closes and (atomic) renames. Returns the SHA-256 (hex) of the bytes. Errors: kIo.
  std::string finish();

 private:
  void flush();
  std::filesystem::path path_;
  std::filesystem::path written_;  // the temporary, or path_
  std::string pending_;            // small writes are gathered
  uint64_t size_ = 0;
  Sha256 hash_;
  int descriptor_ = -1;
};

/// Fills `out` from `offset` on and returns the bytes read: fewer than `size` only at the end of
/// the file. `path` is for messages. Errors: kIo.
size_t read_at(int descriptor, void* out, size_t size, uint64_t offset,
               const std::filesystem::path& path);

/// Writes all of `data`. `path` is for messages. Errors: kIo with path and bytes.
void write_all(int descriptor, const char* data, size_t size, const std::filesystem::path& path);

/// The bytes of a file. Errors: kIo if it is missing or cannot be read.
std::string read_file(const std::filesystem::path& path);
/// Writes and syncs `path` in place (for files inside a folder that is renamed as a whole). Errors:
/// kIo with path and bytes.
void write_file_synced(const std::filesystem::path& path, std::string_view bytes);
/// Replaces `path` by `bytes`, or leaves it as it was. Errors: kIo with path and bytes needed.
void write_file_atomic(const std::filesystem::path& path, std::string_view bytes);
void sync_folder(const std::filesystem::path& path);
/// rename(2), checked. Errors: kIo.
void rename_path(const std::filesystem::path& from, const std::filesystem::path& to);
/// Free bytes on the file system of `path`.
uint64_t free_bytes(const std::filesystem::path& path);
/// SHA-256 (hex) of a file's bytes, read in pieces.
std::string sha256_file(const std::filesystem::path& path);

/// An exclusive flock on `path`, held until destruction. Errors: kIo, "locked by another process".
class FileLock {
 public:
  explicit FileLock(const std::filesystem::path& path);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  int descriptor_ = -1;
};

/// A text file that only grows, a line at a time (the JSONL log). If the last byte is not a
/// newline, one is written first.
class LineFile {
 public:
  explicit LineFile(const std::filesystem::path& path);
  ~LineFile();
  LineFile(const LineFile&) = delete;
  LineFile& operator=(const LineFile&) = delete;
  /// One write(2) for the line and its newline. Errors: kIo.
  void append(std::string_view line);

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  bool torn_ = false;  // a failed append may have left half a line
};

}  // namespace sigma
