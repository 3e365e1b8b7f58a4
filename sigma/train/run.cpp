#include "sigma/train/run.h"

#include <sys/random.h>

#include <chrono>
#include <cmath>
#include <map>
#include <sstream>

#include "sigma/base/error.h"
#include "sigma/base/progress.h"
#include "sigma/base/version.h"
#include "sigma/io/images.h"

namespace sigma {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string random_id() {
  unsigned char bytes[16];
  SIGMA_CHECK(kFailure, getrandom(bytes, sizeof bytes, 0) == sizeof bytes,
              "run id: getrandom failed");
  std::string text;
  for (const unsigned char byte : bytes) text += fmt::format("{:02x}", byte);
  return text;
}

// JSON has no NaN: null, and the keys by name.
void mark_nonfinite(Json& node, const std::string& prefix, Json& names) {
  for (auto& [key, value] : node.items()) {
    if (value.is_object()) {
      mark_nonfinite(value, prefix + key + ".", names);
    } else if (value.is_number_float() && !std::isfinite(value.get<double>())) {
      value = nullptr;
      names.push_back(prefix + key);
    }
  }
}

Json log_line(const std::string& event, Json fields) {
  Json line = {{"t", now()}, {"event", event}};
  Json names = Json::array();
  mark_nonfinite(fields, "", names);
  line.update(fields);
  if (!names.empty()) line["nonfinite"] = names;
  return line;
}

// A file's name need not be UTF-8.
std::string text_of(const Json& line) {
  return line.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// {"losses": {"imm": 1}} -> losses/imm.
void write_scalars(const Json& node, const std::string& prefix, int64_t step, EventFile& out) {
  for (const auto& [key, value] : node.items()) {
    if (value.is_object()) write_scalars(value, prefix + key + "/", step, out);
    else if (value.is_number()) out.scalar(prefix + key, value.get<double>(), step);
    else if (value.is_null()) out.scalar(prefix + key, std::nan(""), step);
  }
}

}  // namespace

Run::Run(std::filesystem::path folder, RunConfig& config) : folder_(std::move(folder)) {
  const std::filesystem::path config_file = folder_ / "config.toml";
  existed_ = std::filesystem::exists(config_file);
  if (!existed_) {
    SIGMA_CHECK(kUsage, !std::filesystem::exists(folder_ / "checkpoints"),
                "{}: expected a run or an empty folder, found checkpoints without config.toml",
                folder_.string());
    std::error_code error;
    std::filesystem::create_directories(folder_, error);
    SIGMA_CHECK(kIo, !error, "{}: cannot be created: {}", folder_.string(), error.message());
    id_ = random_id();
  }
  lock_ = std::make_unique<FileLock>(folder_ / "lock");
  if (existed_) {
    const Json run = Json::parse(read_file(folder_ / "run.json"));
    id_ = run.at("run_id").get<std::string>();
    data_sha256_ = run.at("data_sha256").get<std::string>();
  }
  checkpoints_ = std::make_unique<CheckpointStore>(
      folder_ / "checkpoints", id_, [this](const std::string& message) { warn(message); });
  if (existed_ && checkpoints_->steps().empty()) {
    existed_ = false;
    data_sha256_.clear();
  }
  if (existed_) {
    RunConfig stored = load_config_toml(config_file);
    if (config.train.compute_dtype == "auto")
      config.train.compute_dtype = stored.train.compute_dtype;
    const Role identity = Role::kIdentity;
    std::map<std::string, std::string> old_keys;
    for (const auto& [key, value] : flatten(write_config(visit_of(stored), &identity)))
      old_keys[key] = value;
    std::string differences;
    for (const auto& [key, value] : flatten(write_config(visit_of(config), &identity))) {
      const std::string old_value = old_keys.contains(key) ? old_keys[key] : "nothing";
      if (old_value != value)
        differences += fmt::format("\n  {}: the run has {}, asked for {}", key, old_value, value);
      old_keys.erase(key);
    }
    for (const auto& [key, value] : old_keys)
      differences += fmt::format("\n  {}: the run has {}, asked for nothing", key, value);
    if (!differences.empty()) {
      throw Error(
          ErrorKind::kUsage,
          fmt::format("{} is a run of another configuration:{}", folder_.string(), differences),
          "name another folder with --run, or give the run's own settings");
    }
  }
}

void Run::commit(const RunConfig& config, const std::string& data_sha256,
                 const std::vector<std::string>& argv) {
  if (existed_) return;
  RunConfig copy = config;
  data_sha256_ = data_sha256;
  Json run = {{"run_id", id_},
              {"created", now()},
              {"version", version()},
              {"git", commit_hash()},
              {"config_sha256", config_hash(visit_of(copy))},
              {"data_sha256", data_sha256},
              {"argv", argv}};
  write_file_atomic(folder_ / "run.json",
                    run.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  write_file_atomic(folder_ / "config.toml", to_toml(write_config(visit_of(copy))));
}

void Run::log(const std::string& event, Json fields) {
  if (!log_) log_ = std::make_unique<LineFile>(folder_ / "log.jsonl");
  const Json line = log_line(event, std::move(fields));
  const std::string text = text_of(line);
  log_->append(text);
  if (on_log_) on_log_(text);
  follow(event, line);
}

void Run::follow(const std::string& event, const Json& line) {
  if (event == "start" || event == "resume") {
    const auto step = line.at("step").get<int64_t>();
    const bool again = std::filesystem::exists(folder_ / "events");
    events_ = std::make_unique<EventFile>(folder_ / "events");
    if (again) events_->session_start(step);
    events_->text("config", "```toml\n" + read_file(folder_ / "config.toml") + "```\n", step + 1);
  }
  if (!events_) return;
  if (event == "step") {
    Json scalars = line;
    for (const char* key : {"t", "event", "step"}) scalars.erase(key);
    write_scalars(scalars, "", line.at("step").get<int64_t>(), *events_);
  } else {
    events_->flush();
  }
}

void Run::log_picture(const std::filesystem::path& file, int64_t step) {
  if (file.empty()) return;
  const std::string png = read_file(file);
  const Image image = decode_image(png, file.string());
  if (events_) events_->image("samples", png, image.height, image.width, image.channels, step);
  log("sample", {{"step", step}, {"file", file.lexically_relative(folder_).string()}});
}

void Run::warn(const std::string& message) {
  print_note("warning: " + message);
  log("warning", {{"message", message}});
}

void append_to_log(const std::filesystem::path& run, const std::string& event, Json fields) {
  LineFile(run / "log.jsonl").append(text_of(log_line(event, std::move(fields))));
}

std::filesystem::path find_run(const std::string& name) {
  for (const std::filesystem::path& candidate :
       {std::filesystem::path(name), std::filesystem::path("runs") / name}) {
    if (std::filesystem::exists(candidate / "config.toml")) return candidate;
  }
  fail(ErrorKind::kUsage,
       "{}: expected a run directory, or the name of one under runs/; it has no config.toml", name);
}

Checkpoint newest_checkpoint(const std::filesystem::path& run) {
  const Json info = Json::parse(read_file(run / "run.json"));
  const CheckpointStore store(
      run / "checkpoints", info.at("run_id").get<std::string>(),
      [](const std::string& message) { print_note("warning: " + message); });
  Checkpoint checkpoint;
  SIGMA_CHECK(kCheckpoint, store.latest(checkpoint), "{}: expected a checkpoint, found none",
              run.string());
  return checkpoint;
}

Checkpoint finished_checkpoint(const std::filesystem::path& run) {
  const RunConfig config = load_config_toml(run / "config.toml");
  const Checkpoint checkpoint = newest_checkpoint(run);
  SIGMA_CHECK(kUsage, checkpoint.step() >= config.train.steps(),
              "{}: expected a finished run ({} steps), it has {}; repeat its train command",
              run.string(), config.train.steps(), checkpoint.step());
  return checkpoint;
}

std::vector<int64_t> image_shape_of(const SafetensorsFile& file) {
  const auto found = file.metadata().find("image_shape");
  SIGMA_CHECK(kCheckpoint, found != file.metadata().end(), "{}: expected metadata image_shape",
              file.path().string());
  return Json::parse(found->second).get<std::vector<int64_t>>();
}

}  // namespace sigma
