#include "sigma/train/find_weights.h"

#include <algorithm>
#include <optional>

#include "sigma/base/error.h"

namespace sigma {
namespace {

namespace fs = std::filesystem;

// The place itself, if it is a checkpoint folder.
std::vector<fs::path> checkpoint_at(const fs::path& place) {
  std::error_code ignored;
  const fs::path manifest = place / "manifest.json";
  if (!fs::is_regular_file(manifest, ignored)) return {};
  return {manifest.parent_path()};  // no slash at its end
}

// Checkpoint folders in and below `place`, the newest first.
std::vector<fs::path> checkpoints_below(const fs::path& place) {
  std::vector<fs::path> out = checkpoint_at(place);
  if (!out.empty()) return out;
  std::error_code ignored;
  constexpr auto options = fs::directory_options::skip_permission_denied;
  for (fs::recursive_directory_iterator at(place, options, ignored), end; at != end;
       at.increment(ignored)) {
    if (ignored) break;
    // Unfinished and damaged checkpoints are hidden folders.
    if (at->path().filename().string().starts_with('.')) at.disable_recursion_pending();
    else if (at->path().filename() == "manifest.json") out.push_back(at->path().parent_path());
  }
  std::sort(out.rbegin(), out.rend());
  return out;
}

}  // namespace

Checkpoint find_weights(const std::string& sha256, const std::string& stem,
                        const fs::path& recorded, const std::vector<fs::path>& places) {
  std::string damaged;
  const auto find_in = [&](const std::vector<fs::path>& folders) -> std::optional<Checkpoint> {
    for (const fs::path& folder : folders) {
      try {
        const Checkpoint found = verify_checkpoint(folder, /*check_hashes=*/false);
        if (!found.has(stem) || found.file_sha256(stem) != sha256) continue;
        return verify_checkpoint(folder);
      } catch (const Error& error) {
        if (error.kind() != ErrorKind::kCheckpoint) throw;
        damaged += fmt::format("\n  {}: passed over: {}", folder.string(), error.what());
      }
    }
    return std::nullopt;
  };
  if (const auto found = find_in(checkpoint_at(recorded))) return *found;
  std::string searched = recorded.string();
  for (const fs::path& place : places) {
    if (const auto found = find_in(checkpoints_below(place))) return *found;
    searched += ", " + place.string();
  }
  throw Error(
      ErrorKind::kCheckpoint,
      fmt::format("weights: expected {}.safetensors of SHA-256 {}, found none (searched {}){}",
                  stem, sha256, searched, damaged),
      "--checkpoint names the checkpoint, its run, or a folder of runs");
}

}  // namespace sigma
