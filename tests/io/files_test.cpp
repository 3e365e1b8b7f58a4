#include "sigma/io/files.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>

#include "sigma/base/error.h"
#include "tests/testing/scratch.h"

namespace sigma {
namespace {

namespace fs = std::filesystem;

int entries(const fs::path& folder) {
  return static_cast<int>(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

ErrorKind kind_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.kind();
  }
  return ErrorKind::kFailure;
}

TEST(Files, WriteAndRead) {
  const Scratch scratch;
  std::string bytes(3'000'001, '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 7 + i / 251);
  for (const std::string& text : {std::string(), std::string("a\0b", 3), bytes}) {
    write_file_atomic(scratch.path("a"), text);
    write_file_synced(scratch.path("b"), text);
    EXPECT_EQ(read_file(scratch.path("a")), text);
    EXPECT_EQ(read_file(scratch.path("b")), text);
    EXPECT_EQ(sha256_file(scratch.path("a")), sha256_hex(text));
  }
  EXPECT_EQ(entries(scratch.path()), 2);  // no temporaries
}

TEST(Files, WriterHashesWhatItWrites) {
  const Scratch scratch;
  FileWriter file(scratch.path("a"), FileWriter::Mode::kAtomic);
  std::string all;
  for (const size_t size : {3u, 0u, 300'000u, 5u, 262'144u, 2'500'000u, 1u}) {
    const std::string part(size, static_cast<char>('a' + size % 26));
    file.write(part.data(), part.size());
    all += part;
  }
  EXPECT_FALSE(fs::exists(scratch.path("a")));
  EXPECT_EQ(file.finish(), sha256_hex(all));
  EXPECT_EQ(read_file(scratch.path("a")), all);
}

TEST(Files, AnUnfinishedWriterLeavesNothing) {
  const Scratch scratch;
  write_file_atomic(scratch.path("a"), "old");
  {
    FileWriter(scratch.path("a"), FileWriter::Mode::kAtomic).write("new", 3);
  }
  EXPECT_EQ(read_file(scratch.path("a")), "old");
  EXPECT_EQ(entries(scratch.path()), 1);
}

TEST(Files, ErrorsAreIoAndNameThePath) {
  const Scratch scratch;
  EXPECT_EQ(kind_of([&] { read_file(scratch.path("none")); }), ErrorKind::kIo);
  EXPECT_EQ(kind_of([&] { read_file(scratch.path()); }), ErrorKind::kIo);
  EXPECT_EQ(kind_of([&] { sync_folder(scratch.path("none")); }), ErrorKind::kIo);
  EXPECT_EQ(kind_of([&] { free_bytes(scratch.path("none")); }), ErrorKind::kIo);
  EXPECT_GT(free_bytes(scratch.path()), 0u);
  try {
    write_file_atomic(scratch.path("none/a"), "x");
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("none"), std::string::npos);
  }
}

/// Runs `child` in a forked process whose files may hold `limit` bytes; returns its exit code.
int with_file_limit(rlim_t limit, const std::function<int()>& child) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit value{limit, limit};
    ::setrlimit(RLIMIT_FSIZE, &value);
    int result = 100;
    try {
      result = child();
    } catch (...) {
    }
    ::_exit(result);
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(Files, AFullDiskLeavesTheOldFile) {
  const Scratch scratch;
  const fs::path path = scratch.path("a");
  write_file_atomic(path, "old");
  const int result = with_file_limit(100'000, [&] {
    try {
      write_file_atomic(path, std::string(500'000, 'x'));
    } catch (const Error& error) {
      const std::string text = error.what();
      const bool named = text.find(path.filename().string()) != std::string::npos &&
                         text.find("bytes") != std::string::npos;
      return named ? error.exit_code() : 99;
    }
    return 0;
  });
  EXPECT_EQ(result, 7);
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(entries(scratch.path()), 1);
}

TEST(Files, LockIsExclusive) {
  const Scratch scratch;
  {
    const FileLock lock(scratch.path("lock"));
    try {
      const FileLock second(scratch.path("lock"));
      FAIL();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kIo);
      EXPECT_NE(std::string(error.what()).find("locked by another process"), std::string::npos);
    }
  }
  const FileLock again(scratch.path("lock"));
}

TEST(LineFile, GrowsAndMendsATornLine) {
  const Scratch scratch;
  const fs::path path = scratch.path("log");
  LineFile(path).append("one");
  LineFile(path).append("two");
  EXPECT_EQ(read_file(path), "one\ntwo\n");
  write_file_synced(path, "one\nbrok");
  LineFile(path).append("two");
  EXPECT_EQ(read_file(path), "one\nbrok\ntwo\n");
}

TEST(LineFile, AFailedAppendDoesNotSpoilTheNext) {
  const Scratch scratch;
  const fs::path path = scratch.path("log");
  const int result = with_file_limit(10, [&] {
    LineFile log(path);
    log.append("one");
    int code = 0;
    try {
      log.append("a line that does not fit");
    } catch (const Error& error) {
      code = error.exit_code();
    }
    fs::resize_file(path, 6);  // "one\na " : room again
    log.append("b");
    return code;
  });
  EXPECT_EQ(result, 7);
  EXPECT_EQ(read_file(path), "one\na \nb\n");
}

}  // namespace
}  // namespace sigma
