// Safetensors files: a strict reader and a deterministic writer of torch tensors. The header's
// layout and rules are in safetensors_header.h. Not supported: dtypes that torch lacks (F4, F6).
#pragma once

#include <torch/types.h>

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "sigma/io/safetensors_header.h"

namespace sigma {

using NamedTensors = std::vector<std::pair<std::string, torch::Tensor>>;
using Metadata = std::map<std::string, std::string>;

/// Writes `tensors` atomically (`in_place`: write and fsync only, for files of a checkpoint
/// folder). Same tensors, same bytes. Non-contiguous and GPU tensors are copied. Returns the file's
/// SHA-256 (hex). Errors: kUsage (sparse or quantised tensor, duplicate name, two names on one
/// storage, unknown dtype), kIo.
std::string write_safetensors(const std::filesystem::path& path, const NamedTensors& tensors,
                              const Metadata& metadata = {}, bool in_place = false);

class SafetensorsFile {
 public:
  /// Opens and checks the header. Errors: kData with the rule's name and the tensor; kIo if it
  /// cannot be read.
  explicit SafetensorsFile(std::filesystem::path path);
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::filesystem::path& path() const { return path_; }
  const std::vector<SafetensorsEntry>& entries() const { return header_.entries; }
  const Metadata& metadata() const { return header_.metadata; }
  bool contains(const std::string& name) const;
  const SafetensorsEntry& info(
      const std::string& name) const;  // kData if absent, with "did you mean"
  /// A copy on `device`. Errors: kData if absent, kUsage for dtypes torch has not (F4, F6).
  torch::Tensor load(const std::string& name, torch::Device device = torch::kCPU) const;

 private:
  std::filesystem::path path_;
  SafetensorsHeader header_;
  int descriptor_ = -1;
};

}  // namespace sigma
