#include "sigma/io/files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <vector>

#include "sigma/base/error.h"

namespace sigma {
namespace {

constexpr size_t kMaxCall = size_t{1} << 30;  // Linux moves at most 2 GiB a call
constexpr size_t kPiece = size_t{1} << 20;    // hashed and written while it is in the cache
constexpr size_t kGather = size_t{256} << 10;

std::string error_text(int code) { return std::generic_category().message(code); }

[[noreturn]] void fail_io(const std::filesystem::path& path, const std::string& what, int code) {
  std::string hint;
  if (code == ENOSPC || code == EDQUOT) hint = "free space on the file system of " + path.string();
  if (code == EFBIG) hint = "a limit on the size of files is in force (ulimit -f)";
  throw Error(ErrorKind::kIo, fmt::format("{}: {}: {}", path.string(), what, error_text(code)),
              hint);
}

int open_checked(const std::filesystem::path& path, int flags, const char* what) {
  int descriptor;
  do {
    descriptor = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  } while (descriptor < 0 && errno == EINTR);
  if (descriptor < 0) fail_io(path, what, errno);
  return descriptor;
}

class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  ~Descriptor() { ::close(value_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return value_; }

 private:
  int value_;
};

/// Never retried: after a failed fsync the kernel may have dropped the dirty pages, and a second
/// one would report success.
void sync_descriptor(int descriptor, const std::filesystem::path& path, uint64_t bytes) {
  if (::fsync(descriptor) != 0) fail_io(path, fmt::format("cannot sync {} bytes", bytes), errno);
}

std::filesystem::path temporary_of(const std::filesystem::path& path) {
  return path.parent_path() / fmt::format(".{}.tmp-{}", path.filename().string(), ::getpid());
}

std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

}  // namespace

// Past RLIMIT_FSIZE, write() fails with EFBIG only where SIGXFSZ is ignored, as the program's main
// does; by default the signal kills the process.
void write_all(int descriptor, const char* data, size_t size, const std::filesystem::path& path) {
  for (size_t done = 0; done < size;) {
    const ssize_t count = ::write(descriptor, data + done, std::min(size - done, kMaxCall));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_io(path, fmt::format("cannot write {} bytes", size - done), errno);
    if (count == 0) fail_io(path, fmt::format("cannot write {} bytes", size - done), ENOSPC);
    done += static_cast<size_t>(count);
  }
}

FileWriter::FileWriter(std::filesystem::path path, Mode mode)
    : path_(std::move(path)), written_(mode == Mode::kAtomic ? temporary_of(path_) : path_) {
  descriptor_ = open_checked(written_, O_WRONLY | O_CREAT | O_TRUNC, "cannot create");
}

FileWriter::~FileWriter() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(written_.c_str());
}

void FileWriter::write(const void* data, size_t size) {
  const char* bytes = static_cast<const char*>(data);
  size_ += size;
  if (pending_.size() + size <= kGather) {
    pending_.append(bytes, size);
    return;
  }
  flush();
  for (size_t done = 0; done < size;) {
    const size_t count = std::min(size - done, kPiece);
    hash_.update(bytes + done, count);
    write_all(descriptor_, bytes + done, count, written_);
    done += count;
  }
}

void FileWriter::flush() {
  hash_.update(pending_.data(), pending_.size());
  write_all(descriptor_, pending_.data(), pending_.size(), written_);
  pending_.clear();
}

std::string FileWriter::finish() {
  flush();
  sync_descriptor(descriptor_, written_, size_);
  // On Linux the descriptor is gone even if close() fails; EINTR after a good fsync loses nothing.
  const bool closed = ::close(descriptor_) == 0 || errno == EINTR;
  const int code = errno;
  descriptor_ = -1;
  try {
    if (!closed) fail_io(written_, fmt::format("cannot close after {} bytes", size_), code);
    if (written_ != path_) rename_path(written_, path_);
  } catch (...) {
    ::unlink(written_.c_str());
    throw;
  }
  if (written_ != path_) sync_folder(folder_of(path_));
  return hash_.hex();
}

size_t read_at(int descriptor, void* out, size_t size, uint64_t offset,
               const std::filesystem::path& path) {
  size_t done = 0;
  while (done < size) {
    const ssize_t count =
        ::pread(descriptor, static_cast<char*>(out) + done, std::min(size - done, kMaxCall),
                static_cast<off_t>(offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0)
      fail_io(path, fmt::format("cannot read {} bytes at {}", size - done, offset + done), errno);
    if (count == 0) break;
    done += static_cast<size_t>(count);
  }
  return done;
}

std::string read_file(const std::filesystem::path& path) {
  const Descriptor file(open_checked(path, O_RDONLY, "cannot open"));
  struct stat status{};
  if (::fstat(file.get(), &status) != 0) fail_io(path, "cannot stat", errno);
  std::string bytes;
  // The size is a guess: pipes have none, and a file may grow. One byte more sees the end without
  // another turn.
  size_t wanted = status.st_size > 0 ? static_cast<size_t>(status.st_size) + 1 : kPiece;
  for (size_t done = 0;;) {
    bytes.resize(done + wanted);
    const ssize_t count = ::read(file.get(), bytes.data() + done, std::min(wanted, kMaxCall));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_io(path, fmt::format("cannot read at {}", done), errno);
    done += static_cast<size_t>(count);
    wanted = std::max(wanted - static_cast<size_t>(count), kPiece);
    if (count == 0) {
      bytes.resize(done);
      return bytes;
    }
  }
}

void write_file_synced(const std::filesystem::path& path, std::string_view bytes) {
  FileWriter file(path, FileWriter::Mode::kInPlace);
  file.write(bytes.data(), bytes.size());
  file.finish();
}

void write_file_atomic(const std::filesystem::path& path, std::string_view bytes) {
  FileWriter file(path, FileWriter::Mode::kAtomic);
  file.write(bytes.data(), bytes.size());
  file.finish();
}

void sync_folder(const std::filesystem::path& path) {
  const Descriptor folder(open_checked(path, O_RDONLY | O_DIRECTORY, "cannot open folder"));
  // EINVAL: this file system has no fsync for folders.
  if (::fsync(folder.get()) != 0 && errno != EINVAL) fail_io(path, "cannot sync folder", errno);
}

void rename_path(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0)
    fail_io(from, fmt::format("cannot rename to {}", to.string()), errno);
}

uint64_t free_bytes(const std::filesystem::path& path) {
  struct statvfs status{};
  int result;
  do {
    result = ::statvfs(path.c_str(), &status);
  } while (result != 0 && errno == EINTR);
  if (result != 0) fail_io(path, "cannot ask for free space", errno);
  return uint64_t{status.f_bavail} * status.f_frsize;
}

std::string sha256_file(const std::filesystem::path& path) {
  const Descriptor file(open_checked(path, O_RDONLY, "cannot open"));
  std::vector<char> piece(kPiece);
  Sha256 hash;
  for (uint64_t done = 0;;) {
    const size_t count = read_at(file.get(), piece.data(), piece.size(), done, path);
    hash.update(piece.data(), count);
    done += count;
    if (count < piece.size()) return hash.hex();
  }
}

FileLock::FileLock(const std::filesystem::path& path)
    : descriptor_(open_checked(path, O_RDWR | O_CREAT, "cannot open lock")) {
  int result;
  do {
    result = ::flock(descriptor_, LOCK_EX | LOCK_NB);
  } while (result != 0 && errno == EINTR);
  if (result == 0) return;
  const int code = errno;
  ::close(descriptor_);
  if (code != EWOULDBLOCK) fail_io(path, "cannot lock", code);
  throw Error(ErrorKind::kIo, path.string() + ": locked by another process",
              "wait for it, or stop it");
}

FileLock::~FileLock() { ::close(descriptor_); }

LineFile::LineFile(const std::filesystem::path& path)
    : path_(path), descriptor_(open_checked(path, O_RDWR | O_APPEND | O_CREAT, "cannot open")) {
  try {
    const off_t size = ::lseek(descriptor_, 0, SEEK_END);
    if (size < 0) fail_io(path_, "cannot seek", errno);
    char last = '\n';
    if (size > 0) read_at(descriptor_, &last, 1, static_cast<uint64_t>(size) - 1, path_);
    if (last != '\n') write_all(descriptor_, "\n", 1, path_);
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

LineFile::~LineFile() { ::close(descriptor_); }

void LineFile::append(std::string_view line) {
  std::string text = torn_ ? "\n" : "";
  text.append(line).push_back('\n');
  torn_ = true;
  write_all(descriptor_, text.data(), text.size(), path_);
  torn_ = false;
}

}  // namespace sigma
