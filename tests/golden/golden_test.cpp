// Runs every golden file below SIGMA_GOLDEN_DIR (default: tests/golden of the source tree) through
// the library and prints one line a file: passed (max error, bound), failed, or skipped. Exit code
// 1 if any failed.
#include "tests/golden_runners/golden.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <vector>

int main() {
  namespace fs = std::filesystem;
  const char* variable = std::getenv("SIGMA_GOLDEN_DIR");
  const fs::path root =
      variable && *variable ? fs::path(variable) : fs::path(SIGMA_SOURCE_DIR) / "tests" / "golden";
  std::vector<fs::path> files;
  std::error_code error;
  for (auto it = fs::recursive_directory_iterator(
           root, fs::directory_options::follow_directory_symlink, error);
       !error && it != fs::recursive_directory_iterator(); it.increment(error)) {
    if (it->is_regular_file() && it->path().extension() == ".safetensors")
      files.push_back(it->path());
  }
  if (error || files.empty()) {
    fmt::print("no golden files in {}{}\n", root.string(), error ? ": " + error.message() : "");
    return 1;
  }
  std::sort(files.begin(), files.end());

  int passed = 0;
  int failed = 0;
  int skipped = 0;
  for (const auto& file : files) {
    const sigma::golden::Report report = sigma::golden::run_file(file);
    const std::string line = report.line();
    if (line.starts_with("passed")) ++passed;
    else if (line.starts_with("skipped")) ++skipped;
    else ++failed;
    fmt::print("{}: {}\n", file.lexically_relative(root).string(), line);
    std::fflush(stdout);
  }
  fmt::print("{} passed, {} failed, {} skipped\n", passed, failed, skipped);
  return failed > 0 ? 1 : 0;
}
