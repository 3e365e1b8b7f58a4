// The run directory: everything a run is, readable with common tools.
//
//   config.toml   the resolved configuration     run.json    id, version, hashes, command line
//   log.jsonl     one JSON object a line         lock        held while training
//   events/       the log for TensorBoard        samples/    grids, see sigma/cli/sample_grid.h
//   checkpoints/  see sigma/io/checkpoint.h      tokenizer/  weights and config, if on latents
//
// Repeating a training command resumes its run. Not supported: two processes on one run.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "sigma/base/config.h"
#include "sigma/io/checkpoint.h"
#include "sigma/io/event_file.h"
#include "sigma/io/files.h"
#include "sigma/train/config.h"

namespace sigma {

class Run {
 public:
  /// Opens `folder` for training: creates it, or checks that its identity agrees with `config`
  /// (which then takes the run's resolved "auto" values). A run without a checkpoint has nothing to
  /// lose: it takes any configuration. Holds the lock. Errors: kUsage (another configuration,
  /// naming the keys), kIo (locked).
  Run(std::filesystem::path folder, RunConfig& config);

  const std::filesystem::path& folder() const { return folder_; }
  const std::string& id() const { return id_; }
  bool existed() const { return existed_; }
  CheckpointStore& checkpoints() { return *checkpoints_; }
  /// Appends {"t": seconds, "event": event, fields...}; non-finite numbers become null and are
  /// named in "nonfinite". From "start" or "resume" on, events/ follows: numbers of a step line as
  /// scalars, the configuration as text.
  void log(const std::string& event, Json fields);
  /// A PNG file in the run, to the log and to events/; an empty path: none. Errors: kIo, kData.
  void log_picture(const std::filesystem::path& file, int64_t step);
  /// From now on `see` is given each line of the log too.
  void on_log(std::function<void(const std::string&)> see) { on_log_ = std::move(see); }
  /// To stderr and to the log.
  void warn(const std::string& message);
  /// Writes config.toml and run.json once all that could refuse the run has been checked.
  void commit(const RunConfig& config, const std::string& data_sha256,
              const std::vector<std::string>& argv);
  /// The data hash the run was started with; empty before commit().
  const std::string& data_sha256() const { return data_sha256_; }

 private:
  void follow(const std::string& event, const Json& line);
  std::filesystem::path folder_;
  std::string id_;
  std::string data_sha256_;
  bool existed_ = false;
  std::unique_ptr<FileLock> lock_;
  std::unique_ptr<LineFile> log_;
  std::unique_ptr<EventFile> events_;
  std::function<void(const std::string&)> on_log_;
  std::unique_ptr<CheckpointStore> checkpoints_;
};

/// Appends a line to the log of a run that this process does not train; as Run::log(), but events/
/// stays as it is. Errors: kIo.
void append_to_log(const std::filesystem::path& run, const std::string& event, Json fields);
/// A run by path, or by name under runs/. Errors: kUsage.
std::filesystem::path find_run(const std::string& name);
/// The newest verified checkpoint of a run. Errors: kCheckpoint (none).
Checkpoint newest_checkpoint(const std::filesystem::path& run);
/// The same, but the run must have reached its end. Errors: kUsage, kCheckpoint.
Checkpoint finished_checkpoint(const std::filesystem::path& run);
/// [C,Y,X] from the metadata of a weights file. Errors: kCheckpoint.
std::vector<int64_t> image_shape_of(const SafetensorsFile& file);

}  // namespace sigma
