// A folder that lives as long as a test.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <string>

namespace sigma {

class Scratch {
 public:
  Scratch() {
    std::string name = (std::filesystem::temp_directory_path() / "sigma-io-XXXXXX").string();
    folder_ = ::mkdtemp(name.data());
  }
  ~Scratch() { std::filesystem::remove_all(folder_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  std::filesystem::path path(const std::string& name = "") const {
    return name.empty() ? folder_ : folder_ / name;
  }

 private:
  std::filesystem::path folder_;
};

}  // namespace sigma
