// Checkpoints: a folder that is either complete and verified, or does not exist.
//
//   checkpoints/step-0000123/{run_id, *.safetensors, state.json, config.toml, manifest.json}
//
// Save: free space checked; .tmp-STEP-PID written, each file fsynced; manifest.json with sizes and
// SHA-256; rename; fsync of the parent. Start: temporary folders of this run are removed; the
// newest checkpoint whose manifest verifies is used, older ones with a warning. Knows files, not
// models: train/ decides what is in them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "sigma/base/config.h"
#include "sigma/io/safetensors.h"

namespace sigma {

struct CheckpointFile {
  std::string stem;  // "model" -> model.safetensors
  NamedTensors tensors;
  Metadata metadata;
};

struct CheckpointContents {
  int64_t step = 0;
  int64_t images_seen = 0;
  std::string run_id;
  std::vector<CheckpointFile> files;
  Json state = Json::object();  // state.json
  std::string config_toml;
  Json manifest_extra =
      Json::object();  // config_sha256, data_sha256, version, git, ...: merged into the manifest
};

struct CheckpointPolicy {
  int64_t keep_last = 3;
  int64_t keep_every = 0;  // images; 0 = off
};

/// What is needed to resume: the folder and its parsed manifest and state.
struct Checkpoint {
  std::filesystem::path folder;
  Json manifest;
  Json state;
  int64_t step() const;
  int64_t images_seen() const;
  SafetensorsFile open(
      const std::string& stem) const;  // "model" -> model.safetensors; kCheckpoint if absent
  bool has(const std::string& stem) const;
  std::string file_sha256(const std::string& stem) const;  // from the manifest
};

class CheckpointStore {
 public:
  /// `folder` is RUN/checkpoints. `warn` receives lines such as "step-0000100: model.safetensors:
  /// SHA-256 differs; skipped".
  CheckpointStore(std::filesystem::path folder, std::string run_id,
                  std::function<void(const std::string&)> warn);

  /// Removes .tmp-* and .trash-* folders that are provably this run's: name fits, and run_id inside
  /// equals or is a prefix of ours, or the folder is empty.
  void clean() const;
  /// Saves, then applies the policy; state["best"], if an integer, is a step that is kept too. An
  /// existing target of that step is left as it is if it verifies, else kept as `.bad-N-UNIX`.
  /// Errors: kIo (path, bytes needed, bytes free); the previous checkpoints are then untouched.
  std::filesystem::path save(const CheckpointContents& contents,
                             const CheckpointPolicy& policy) const;
  /// The newest that verifies; warns about each newer one that does not. False: there is no
  /// checkpoint folder at all. Errors: kCheckpoint if there are some and none verifies, or one has
  /// a newer format.
  bool latest(Checkpoint& out, bool check_hashes = true) const;
  /// Steps present, ascending (not verified).
  std::vector<int64_t> steps() const;

 private:
  bool is_saved(const std::filesystem::path& target, int64_t images_seen) const;
  void retain(const CheckpointContents& saved, const CheckpointPolicy& policy) const;
  std::filesystem::path folder_;
  std::string run_id_;
  std::function<void(const std::string&)> warn_;
};

/// Reads and verifies one checkpoint folder. Errors: kCheckpoint with file, expected and actual.
Checkpoint verify_checkpoint(const std::filesystem::path& folder, bool check_hashes = true);

}  // namespace sigma
