#include "sigma/io/checkpoint.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <torch/types.h>
#include <unistd.h>

#include <csignal>

#include "sigma/base/error.h"
#include "sigma/io/files.h"
#include "tests/testing/scratch.h"

namespace sigma {
namespace {

namespace fs = std::filesystem;

const std::string kRun = "0123456789abcdef0123456789abcdef";

class CheckpointTest : public testing::Test {
 protected:
  CheckpointContents contents(int64_t step, float value = 1) const {
    CheckpointContents c;
    c.step = step;
    c.images_seen = step * 10;
    c.run_id = kRun;
    const Metadata metadata = {{"format", "pt"}};
    c.files = {{"model", {{"w", torch::full({100}, value)}, {"b", torch::zeros({3})}}, metadata},
               {"ema-main", {{"w", torch::full({100}, value)}}, metadata}};
    c.state = {{"step", step}, {"updates", step}};
    c.config_toml = "task = \"generator\"\n";
    c.manifest_extra = {{"version", "0.1.0"}, {"step", 999}};
    return c;
  }
  fs::path save(int64_t step, CheckpointPolicy policy = {}, float value = 1) const {
    return store_.save(contents(step, value), policy);
  }
  void spoil(const fs::path& file, size_t at) const {
    std::string bytes = read_file(file);
    bytes.at(at) = static_cast<char>(bytes[at] ^ 1);
    write_file_synced(file, bytes);
  }
  std::set<std::string> names() const {
    std::set<std::string> found;
    for (const auto& item : fs::directory_iterator(folder_)) found.insert(item.path().filename());
    return found;
  }
  ErrorKind latest_error(std::string* text = nullptr) const {
    Checkpoint found;
    try {
      store_.latest(found);
    } catch (const Error& error) {
      if (text != nullptr) *text = error.what();
      return error.kind();
    }
    return ErrorKind::kFailure;
  }
  int64_t latest_step(bool check_hashes = true) const {
    Checkpoint found;
    return store_.latest(found, check_hashes) ? found.step() : -1;
  }

  Scratch scratch_;
  fs::path folder_ = scratch_.path("checkpoints");
  mutable std::vector<std::string> warnings_;
  CheckpointStore store_{folder_, kRun,
                         [this](const std::string& text) { warnings_.push_back(text); }};
};

TEST_F(CheckpointTest, SaveAndLatest) {
  EXPECT_EQ(latest_step(), -1);
  const fs::path folder = save(123);
  EXPECT_EQ(folder, folder_ / "step-0000123");
  EXPECT_EQ(names(), std::set<std::string>{"step-0000123"});
  Checkpoint found;
  ASSERT_TRUE(store_.latest(found));
  EXPECT_EQ(found.step(), 123);
  EXPECT_EQ(found.images_seen(), 1230);
  EXPECT_EQ(found.state["updates"], 123);
  EXPECT_EQ(found.manifest["format"], 1);
  EXPECT_EQ(found.manifest["version"], "0.1.0");
  EXPECT_TRUE(found.has("model"));
  EXPECT_FALSE(found.has("optimizer"));
  EXPECT_EQ(found.file_sha256("model"), sha256_file(folder / "model.safetensors"));
  EXPECT_TRUE(torch::equal(found.open("model").load("w"), torch::full({100}, 1.0f)));
  EXPECT_EQ(found.open("model").metadata().at("format"), "pt");
  EXPECT_THROW(found.open("optimizer"), Error);
  EXPECT_EQ(read_file(folder / "run_id"), kRun);
  EXPECT_EQ(read_file(folder / "config.toml"), "task = \"generator\"\n");
  EXPECT_TRUE(warnings_.empty());
}

TEST_F(CheckpointTest, EqualContentsEqualBytes) {
  const Scratch other;
  const CheckpointStore store(other.path("checkpoints"), kRun, [](const std::string&) {});
  const fs::path a = save(1), b = store.save(contents(1), {});
  for (const auto& item : fs::directory_iterator(a))
    EXPECT_EQ(read_file(item.path()), read_file(b / item.path().filename())) << item.path();
}

TEST_F(CheckpointTest, FallsBackWithAWarning) {
  struct Case {
    const char* what;
    std::function<void(const fs::path&)> damage;
    const char* warning;
  };
  const Case cases[] = {
      {"altered byte", [&](const fs::path& f) { spoil(f / "model.safetensors", 300); },
       "model.safetensors: SHA-256 differs"},
      {"truncated", [&](const fs::path& f) { fs::resize_file(f / "ema-main.safetensors", 10); },
       "ema-main.safetensors: expected"},
      {"missing", [&](const fs::path& f) { fs::remove(f / "state.json"); }, "state.json"},
      {"no manifest", [&](const fs::path& f) { fs::remove(f / "manifest.json"); }, "manifest.json"},
      {"torn manifest", [&](const fs::path& f) { fs::resize_file(f / "manifest.json", 50); },
       "manifest.json"},
      {"empty folder", [&](const fs::path& f) { fs::remove_all(f), fs::create_directory(f); },
       "manifest.json"},
      {"a manifest of nothing",
       [&](const fs::path& f) { write_file_synced(f / "manifest.json", "[]"); }, "manifest.json"},
      {"another step", [&](const fs::path& f) { fs::rename(f, folder_ / "step-0000007"); },
       "step 5"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.what);
    fs::remove_all(folder_);
    warnings_.clear();
    save(4);
    c.damage(save(5));
    warnings_.clear();
    EXPECT_EQ(latest_step(), 4);
    ASSERT_EQ(warnings_.size(), 1u);
    EXPECT_NE(warnings_[0].find(c.warning), std::string::npos) << warnings_[0];
    EXPECT_TRUE(warnings_[0].starts_with("step-000000")) << warnings_[0];
    EXPECT_TRUE(warnings_[0].ends_with("skipped")) << warnings_[0];
  }
}

TEST_F(CheckpointTest, SizeOnlySkipsTheHashes) {
  spoil(save(5) / "model.safetensors", 300);
  EXPECT_EQ(latest_step(false), 5);
  EXPECT_EQ(latest_error(), ErrorKind::kCheckpoint);
}

TEST_F(CheckpointTest, NoneVerifies) {
  spoil(save(5) / "model.safetensors", 300);
  spoil(save(6) / "config.toml", 0);
  std::string text;
  EXPECT_EQ(latest_error(&text), ErrorKind::kCheckpoint);
  EXPECT_NE(text.find("step-0000005: model"), std::string::npos) << text;
  EXPECT_NE(text.find("step-0000006: config"), std::string::npos) << text;
}

TEST_F(CheckpointTest, ANewerFormatIsNotPassedOver) {
  save(4);
  const fs::path file = save(5) / "manifest.json";
  Json manifest = Json::parse(read_file(file));
  manifest["format"] = 2;
  write_file_synced(file, manifest.dump());
  std::string text;
  EXPECT_EQ(latest_error(&text), ErrorKind::kCheckpoint);
  EXPECT_NE(text.find("format: expected at most 1, got 2"), std::string::npos) << text;
}

TEST_F(CheckpointTest, AnotherRunsCheckpointIsNotOurs) {
  save(4);
  const CheckpointStore other(folder_, std::string(32, 'f'),
                              [this](const std::string& text) { warnings_.push_back(text); });
  Checkpoint found;
  EXPECT_THROW(other.latest(found), Error);
}

TEST_F(CheckpointTest, ManifestNamesStayInTheFolder) {
  write_file_synced(scratch_.path("outside"), "x");
  const fs::path file = save(5) / "manifest.json";
  Json manifest = Json::parse(read_file(file));
  manifest["files"].push_back(
      {{"name", "../../outside"}, {"bytes", 1}, {"sha256", sha256_hex("x")}});
  write_file_synced(file, manifest.dump());
  EXPECT_THROW(verify_checkpoint(file.parent_path()), Error);
}

TEST_F(CheckpointTest, CleansOnlyWhatIsProvablyOurs) {
  const auto make = [&](const std::string& name, const char* run_id, bool more) {
    fs::create_directories(folder_ / name);
    if (run_id != nullptr) write_file_synced(folder_ / name / "run_id", run_id);
    if (more) write_file_synced(folder_ / name / "model.safetensors", "x");
  };
  make(".tmp-0000001-100", kRun.c_str(), true);
  make(".trash-0000002-100", kRun.c_str(), true);
  make(".tmp-0000003-100", "0123", false);  // cut short
  make(".tmp-0000004-100", nullptr, false);
  const std::set<std::string> stay = {".tmp-0000005-100",  ".tmp-0000006-100", ".tmp-7",
                                      ".tmp-abc-1",        ".bad-0000008-1",   "step-0000009",
                                      ".tmp-0000010-100x", ".tmp-0000011-100"};
  make(".tmp-0000005-100", "ffff", true);
  make(".tmp-0000006-100", nullptr, true);
  make(".tmp-7", kRun.c_str(), true);
  make(".tmp-abc-1", kRun.c_str(), true);
  make(".bad-0000008-1", kRun.c_str(), true);
  make("step-0000009", kRun.c_str(), true);
  make(".tmp-0000010-100x", kRun.c_str(), true);
  fs::create_directory_symlink(folder_ / "step-0000009", folder_ / ".tmp-0000011-100");
  store_.clean();
  EXPECT_EQ(names(), stay);
  EXPECT_TRUE(fs::exists(folder_ / "step-0000009" / "model.safetensors"));
}

TEST_F(CheckpointTest, Retention) {
  for (int64_t step = 1; step <= 5; ++step) save(step, {.keep_last = 2});
  EXPECT_EQ(store_.steps(), (std::vector<int64_t>{4, 5}));
  EXPECT_EQ(names().size(), 2u);  // no .trash
}

TEST_F(CheckpointTest, RetentionKeepsMultiplesAndTheBest) {
  // images 10 a step: 30, 60 and 90 are crossed at 3, 6 and 9; with 35: 4 (40), 7 (70), 11 (110)
  for (int64_t step = 1; step <= 12; ++step) {
    CheckpointContents c = contents(step);
    if (step >= 5) c.state["best"] = 5;
    store_.save(c, {.keep_last = 1, .keep_every = 35});
  }
  EXPECT_EQ(store_.steps(), (std::vector<int64_t>{4, 5, 7, 11, 12}));
}

TEST_F(CheckpointTest, RetentionLeavesWhatIsNotItsOwn) {
  spoil(save(1) / "manifest.json", 2);
  save(2);
  save(9);
  fs::create_directories(folder_ / "step-0000000");
  save(3, {.keep_last = 1});
  EXPECT_EQ(store_.steps(), (std::vector<int64_t>{0, 1, 3, 9}));
}

TEST_F(CheckpointTest, ABadTargetIsKeptAside) {
  spoil(save(5) / "model.safetensors", 300);
  save(5, {}, 2);
  EXPECT_EQ(latest_step(), 5);
  int bad = 0;
  for (const std::string& name : names())
    if (name.starts_with(".bad-0000005-")) ++bad;
  EXPECT_EQ(bad, 1);
  EXPECT_EQ(names().size(), 2u);
}

TEST_F(CheckpointTest, AGoodTargetIsLeftAlone) {
  const fs::path folder = save(5);
  const auto time = fs::last_write_time(folder / "manifest.json");
  EXPECT_EQ(save(5), folder);
  EXPECT_EQ(fs::last_write_time(folder / "manifest.json"), time);
  EXPECT_EQ(names().size(), 1u);
}

TEST_F(CheckpointTest, AFailedSaveLeavesThePreviousOnes) {
  save(4);
  const pid_t pid = ::fork();
  if (pid == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{500, 500};  // model.safetensors does not fit
    ::setrlimit(RLIMIT_FSIZE, &limit);
    int code = 0;
    try {
      save(5);
    } catch (const Error& error) {
      code = std::string(error.what()).find("model.safetensors") == std::string::npos
                 ? 99
                 : error.exit_code();
    }
    ::_exit(code);
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_EQ(names(), std::set<std::string>{"step-0000004"});
  EXPECT_EQ(latest_step(), 4);
}

TEST_F(CheckpointTest, AKilledSaveIsCleanedUp) {
  save(4);
  for (int i = 0; i < 20; ++i) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      for (int64_t step = 5;; ++step) save(step, {.keep_last = 2});
    }
    ::usleep(static_cast<useconds_t>(i * 997 + 500));
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    store_.clean();
    for (const std::string& name : names()) EXPECT_TRUE(name.starts_with("step-")) << name;
    warnings_.clear();
    EXPECT_GE(latest_step(), 4);
    EXPECT_TRUE(warnings_.empty());
  }
}

}  // namespace
}  // namespace sigma
