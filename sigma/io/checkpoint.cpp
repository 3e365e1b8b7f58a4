#include "sigma/io/checkpoint.h"

#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <set>
#include <system_error>
#include <utility>

#include "sigma/base/error.h"
#include "sigma/io/checkpoint_manifest.h"
#include "sigma/io/files.h"

namespace sigma {
namespace {

namespace fs = std::filesystem;

/// ".tmp-STEP-PID" and ".trash-STEP-PID"
bool is_temporary(const std::string& name) {
  for (const std::string_view prefix : {".tmp-", ".trash-"}) {
    if (!name.starts_with(prefix)) continue;
    const std::string_view rest = std::string_view(name).substr(prefix.size());
    const size_t dash = rest.find('-');
    return dash != std::string_view::npos && parse_digits(rest.substr(0, dash)) &&
           parse_digits(rest.substr(dash + 1));
  }
  return false;
}

std::vector<fs::path> list_folder(const fs::path& folder) {
  std::vector<fs::path> paths;
  std::error_code code;
  for (fs::directory_iterator it(folder, code), end; !code && it != end; it.increment(code))
    paths.push_back(it->path());
  SIGMA_CHECK(kIo, !code, "{}: cannot list: {}", folder.string(), code.message());
  std::sort(paths.begin(), paths.end());
  return paths;
}

bool is_folder(const fs::path& path) {  // and no symlink
  std::error_code code;
  return fs::symlink_status(path, code).type() == fs::file_type::directory;
}

/// `run_id` goes last: a removal that is cut short leaves a folder that still says whose it is.
void remove_folder(const fs::path& folder) {
  std::error_code code;
  for (const fs::path& path : list_folder(folder)) {
    if (path.filename() != "run_id") fs::remove_all(path, code);
    SIGMA_CHECK(kIo, !code, "{}: cannot remove: {}", path.string(), code.message());
  }
  fs::remove_all(folder, code);
  SIGMA_CHECK(kIo, !code, "{}: cannot remove: {}", folder.string(), code.message());
}

/// An upper bound of what save() writes.
uint64_t size_of(const CheckpointContents& contents, const std::string& state) {
  uint64_t bytes = contents.run_id.size() + contents.config_toml.size() + state.size() +
                   contents.manifest_extra.dump().size() + 4096;
  for (const auto& [stem, tensors, metadata] : contents.files) {
    bytes += 256;
    for (const auto& [key, value] : metadata) bytes += key.size() + value.size() + 16;
    for (const auto& [name, tensor] : tensors)
      bytes += name.size() + 256 + (tensor.defined() ? tensor.nbytes() : 0);
  }
  return bytes;
}

void check_space(const fs::path& folder, uint64_t bytes) {
  const uint64_t need = bytes + bytes / 50 + (uint64_t{1} << 20);
  const uint64_t free = free_bytes(folder);
  if (free >= need) return;
  throw Error(ErrorKind::kIo,
              fmt::format("{}: no space for a checkpoint: expected {} bytes free, got {}",
                          folder.string(), need, free),
              "free space, or lower checkpoint.keep_last");
}

/// Writes everything into `folder`; the manifest last.
void write_contents(const fs::path& folder, const CheckpointContents& contents,
                    const std::string& state) {
  Json files = Json::array();
  const auto note = [&](const std::string& name, const std::string& sha256) {
    files.push_back({{"name", name}, {"bytes", fs::file_size(folder / name)}, {"sha256", sha256}});
  };
  const auto write_text = [&](const std::string& name, const std::string& bytes) {
    write_file_synced(folder / name, bytes);
    note(name, sha256_hex(bytes));
  };
  write_text("run_id", contents.run_id);
  for (const auto& [stem, tensors, metadata] : contents.files)
    note(stem + kTensorSuffix,
         write_safetensors(folder / (stem + kTensorSuffix), tensors, metadata, true));
  write_text("state.json", state);
  write_text("config.toml", contents.config_toml);
  Json manifest = {{"format", kCheckpointFormat},
                   {"run_id", contents.run_id},
                   {"step", contents.step},
                   {"images_seen", contents.images_seen}};
  for (const auto& [key, value] : contents.manifest_extra.items())
    if (!manifest.contains(key)) manifest[key] = value;
  manifest["files"] = files;
  write_file_synced(folder / "manifest.json", manifest.dump(2) + "\n");
  sync_folder(folder);
}

void check_contents(const CheckpointContents& contents, const std::string& run_id) {
  SIGMA_CHECK(kFailure, contents.step >= 0 && contents.run_id == run_id,
              "checkpoint: step {} of run {}: expected run {}", contents.step, contents.run_id,
              run_id);
  std::set<std::string> stems;
  for (const auto& [stem, tensors, metadata] : contents.files)
    SIGMA_CHECK(kFailure, is_file_name(stem) && stems.insert(stem).second,
                "checkpoint: bad or duplicate file name \"{}\"", stem);
}

}  // namespace

CheckpointStore::CheckpointStore(fs::path folder, std::string run_id,
                                 std::function<void(const std::string&)> warn)
    : folder_(std::move(folder)), run_id_(std::move(run_id)), warn_(std::move(warn)) {}

void CheckpointStore::clean() const {
  if (!is_folder(folder_)) return;
  for (const fs::path& path : list_folder(folder_)) {
    if (!is_temporary(path.filename().string()) || !is_folder(path)) continue;
    const fs::path mark = path / "run_id";
    std::error_code code;
    const bool ours = fs::is_regular_file(fs::symlink_status(mark, code))
                          ? run_id_.starts_with(read_file(mark))
                          : fs::is_empty(path, code);
    if (ours && !code) remove_folder(path);
  }
}

std::vector<int64_t> CheckpointStore::steps() const {
  std::vector<int64_t> steps;
  if (!is_folder(folder_)) return steps;
  for (const fs::path& path : list_folder(folder_))
    if (const auto step = parse_step(path.filename().string()); step && is_folder(path))
      steps.push_back(*step);
  std::sort(steps.begin(), steps.end());
  return steps;
}

bool CheckpointStore::latest(Checkpoint& out, bool check_hashes) const {
  const std::vector<int64_t> present = steps();
  std::vector<std::string> reasons;
  for (auto step = present.rbegin(); step != present.rend(); ++step) {
    try {
      out = verify_checkpoint(folder_ / ("step-" + step_text(*step)), check_hashes);
      const std::string run = out.manifest.at("run_id").get<std::string>();
      SIGMA_CHECK(kCheckpoint, run == run_id_, "step-{}: of another run: expected {}, got {}",
                  step_text(*step), run_id_, run);
      return true;
    } catch (const NewerFormat&) {
      throw;
    } catch (const Error& error) {
      reasons.push_back(error.what());
      warn_(reasons.back() + "; skipped");
    }
  }
  SIGMA_CHECK(kCheckpoint, reasons.empty(), "{}: no checkpoint verifies: {}", folder_.string(),
              fmt::join(reasons, "; "));
  return false;
}

bool CheckpointStore::is_saved(const fs::path& target, int64_t images_seen) const {
  try {
    const Checkpoint checkpoint = verify_checkpoint(target);
    return checkpoint.manifest.at("run_id") == run_id_ && checkpoint.images_seen() == images_seen;
  } catch (const NewerFormat&) {
    throw;
  } catch (const Error& error) {
    warn_(error.what());
    return false;
  }
}

fs::path CheckpointStore::save(const CheckpointContents& contents,
                               const CheckpointPolicy& policy) const {
  check_contents(contents, run_id_);
  const std::string state = contents.state.dump(2) + "\n";
  const std::string step = step_text(contents.step);
  const fs::path target = folder_ / ("step-" + step);
  const bool exists = fs::exists(fs::symlink_status(target));
  if (exists && is_saved(target, contents.images_seen)) return target;

  std::error_code code;
  if (fs::create_directories(folder_, code)) sync_folder(folder_ / "..");
  SIGMA_CHECK(kIo, !code, "{}: cannot create: {}", folder_.string(), code.message());
  check_space(folder_, size_of(contents, state));
  const fs::path temporary = folder_ / fmt::format(".tmp-{}-{}", step, ::getpid());
  SIGMA_CHECK(kIo, fs::create_directory(temporary, code), "{}: cannot create: {}",
              temporary.string(), code ? code.message() : "it is there already");
  try {
    write_contents(temporary, contents, state);
    if (exists) {
      const std::string bad = fmt::format(".bad-{}-{}", step, std::time(nullptr));
      rename_path(target, folder_ / bad);
      warn_(fmt::format("{} is kept as {}", target.filename().string(), bad));
    }
    rename_path(temporary, target);
  } catch (...) {
    fs::remove_all(temporary, code);
    throw;
  }
  sync_folder(folder_);
  retain(contents, policy);
  return target;
}

/// Later steps than the one just saved were passed over at the start, and are left alone, as is all
/// that is not provably ours.
void CheckpointStore::retain(const CheckpointContents& saved,
                             const CheckpointPolicy& policy) const {
  std::vector<std::pair<int64_t, int64_t>> ours;  // step, images
  for (const int64_t step : steps()) {
    if (step > saved.step) break;
    try {
      const Checkpoint checkpoint = verify_checkpoint(folder_ / ("step-" + step_text(step)), false);
      if (checkpoint.manifest.at("run_id") == run_id_)
        ours.emplace_back(step, checkpoint.images_seen());
    } catch (const Error& error) {
      warn_(fmt::format("{}; not removed", error.what()));
    }
  }
  std::set<int64_t> keep;
  const size_t last = static_cast<size_t>(std::max<int64_t>(policy.keep_last, 1));
  for (size_t i = ours.size() - std::min(last, ours.size()); i < ours.size(); ++i)
    keep.insert(ours[i].first);
  int64_t passed = 0;  // the first checkpoint after each multiple of keep_every
  for (const auto& [step, images] : ours) {
    if (policy.keep_every <= 0 || images / policy.keep_every <= passed) continue;
    passed = images / policy.keep_every;
    keep.insert(step);
  }
  if (const auto best = saved.state.find("best");
      best != saved.state.end() && best->is_number_integer())
    keep.insert(best->get<int64_t>());
  for (const auto& [step, images] : ours) {
    if (keep.contains(step)) continue;
    const fs::path trash = folder_ / fmt::format(".trash-{}-{}", step_text(step), ::getpid());
    rename_path(folder_ / ("step-" + step_text(step)), trash);
    try {
      remove_folder(trash);
    } catch (const Error& error) {  // the checkpoint is saved; the next start tries again
      warn_(error.what());
    }
  }
}

}  // namespace sigma
