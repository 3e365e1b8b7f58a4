#include "sigma/io/checkpoint_manifest.h"

#include <algorithm>
#include <set>
#include <system_error>
#include <utility>

#include "sigma/io/checkpoint.h"
#include "sigma/io/files.h"

namespace sigma {

namespace fs = std::filesystem;

std::string step_text(int64_t step) { return fmt::format("{:07d}", step); }

std::optional<int64_t> parse_digits(std::string_view text) {
  if (text.empty() || text.size() > 18) return std::nullopt;
  int64_t value = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return std::nullopt;
    value = value * 10 + (c - '0');
  }
  return value;
}

std::optional<int64_t> parse_step(const std::string& name) {
  if (!name.starts_with("step-")) return std::nullopt;
  const std::optional<int64_t> step = parse_digits(std::string_view(name).substr(5));
  return step && name == "step-" + step_text(*step) ? step : std::nullopt;
}

bool is_file_name(const std::string& name) {
  return !name.empty() && name[0] != '.' && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

namespace {

Json parse_json(const fs::path& path) {
  try {
    return Json::parse(read_file(path));
  } catch (const Json::exception& error) {
    fail(ErrorKind::kCheckpoint, "{}: {}", path.filename().string(), error.what());
  }
}

int64_t integer(const Json& object, const char* key) {
  const auto found = object.find(key);
  SIGMA_CHECK(kCheckpoint, found != object.end() && found->is_number_integer(),
              "manifest.json: {}: expected an integer", key);
  return found->get<int64_t>();
}

std::string text(const Json& object, const char* key) {
  const auto found = object.find(key);
  SIGMA_CHECK(kCheckpoint, found != object.end() && found->is_string(),
              "manifest.json: {}: expected text", key);
  return found->get<std::string>();
}

Json read_manifest(const fs::path& folder) {
  Json manifest = parse_json(folder / "manifest.json");
  SIGMA_CHECK(kCheckpoint, manifest.is_object(), "manifest.json: expected an object");
  const int64_t format = integer(manifest, "format");
  if (format > kCheckpointFormat)
    throw NewerFormat(ErrorKind::kCheckpoint,
                      fmt::format("format: expected at most {}, got {}", kCheckpointFormat, format),
                      "use the version of sigma that wrote it, or a newer one");
  SIGMA_CHECK(kCheckpoint, format == kCheckpointFormat,
              "manifest.json: format: expected {}, got {}", kCheckpointFormat, format);
  integer(manifest, "images_seen");
  text(manifest, "run_id");
  const int64_t step = integer(manifest, "step");
  SIGMA_CHECK(kCheckpoint, parse_step(folder.filename().string()) == step,
              "manifest.json: step {} does not fit the folder", step);
  const auto files = manifest.find("files");
  SIGMA_CHECK(kCheckpoint, files != manifest.end() && files->is_array(),
              "manifest.json: files: expected a list");
  return manifest;
}

void verify_file(const fs::path& folder, const Json& file, bool check_hashes) {
  SIGMA_CHECK(kCheckpoint, file.is_object(), "manifest.json: files: expected objects");
  const std::string name = text(file, "name"), sha256 = text(file, "sha256");
  const int64_t bytes = integer(file, "bytes");
  SIGMA_CHECK(kCheckpoint, is_file_name(name), "manifest.json: files: bad name \"{}\"", name);
  std::error_code code;
  const uintmax_t size = fs::file_size(folder / name, code);
  SIGMA_CHECK(kCheckpoint, !code, "{}: {}", name, code.message());
  SIGMA_CHECK(kCheckpoint, std::cmp_equal(size, bytes), "{}: expected {} bytes, got {}", name,
              bytes, size);
  if (!check_hashes) return;
  const std::string actual = sha256_file(folder / name);
  SIGMA_CHECK(kCheckpoint, actual == sha256, "{}: SHA-256 differs: expected {}, got {}", name,
              sha256, actual);
}

Checkpoint verify(const fs::path& folder, bool check_hashes) {
  Checkpoint checkpoint;
  checkpoint.folder = folder;
  checkpoint.manifest = read_manifest(folder);
  std::set<std::string> names;
  for (const Json& file : checkpoint.manifest["files"]) {
    verify_file(folder, file, check_hashes);
    names.insert(text(file, "name"));
  }
  for (const char* name : {"run_id", "state.json", "config.toml"})
    SIGMA_CHECK(kCheckpoint, names.contains(name), "manifest.json: files: {} is missing", name);
  checkpoint.state = parse_json(folder / "state.json");
  return checkpoint;
}

}  // namespace

int64_t Checkpoint::step() const { return manifest.at("step").get<int64_t>(); }
int64_t Checkpoint::images_seen() const { return manifest.at("images_seen").get<int64_t>(); }

bool Checkpoint::has(const std::string& stem) const {
  return std::any_of(manifest.at("files").begin(), manifest.at("files").end(),
                     [&](const Json& file) { return file.at("name") == stem + kTensorSuffix; });
}

std::string Checkpoint::file_sha256(const std::string& stem) const {
  for (const Json& file : manifest.at("files"))
    if (file.at("name") == stem + kTensorSuffix) return file.at("sha256").get<std::string>();
  fail(ErrorKind::kCheckpoint, "{}: no file {}{}", folder.string(), stem, kTensorSuffix);
}

SafetensorsFile Checkpoint::open(const std::string& stem) const {
  file_sha256(stem);
  try {
    return SafetensorsFile(folder / (stem + kTensorSuffix));
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kData) throw;
    throw Error(ErrorKind::kCheckpoint, error.what(), error.hint());
  }
}

Checkpoint verify_checkpoint(const fs::path& folder, bool check_hashes) {
  const std::string where = folder.filename().string() + ": ";
  try {
    return verify(folder, check_hashes);
  } catch (const NewerFormat& error) {
    throw NewerFormat(ErrorKind::kCheckpoint, where + error.what(), error.hint());
  } catch (const Error& error) {
    throw Error(ErrorKind::kCheckpoint, where + error.what(), error.hint());
  }
}

}  // namespace sigma
