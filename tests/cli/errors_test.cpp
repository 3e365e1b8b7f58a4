// Bad input through the program: a clear message with expected and actual, the right exit code, and
// nothing lost.
#include <torch/cuda.h>

#include "sigma/io/images.h"
#include "tests/cli/program.h"

namespace sigma {
namespace {

class Errors : public ::testing::Test {
 protected:
  Errors() : p("errors") {
    p.write_data();
    p.write_recipe();
  }
  Program p;
};

TEST_F(Errors, UnknownKeyIsUsageWithTheNearestName) {
  const Finished r = p.run({"train", "tiny.toml", "--set", "train.optimizer.lrr=1"});
  EXPECT_EQ(r.exit, 2);
  EXPECT_CONTAINS(r.err, "train.optimizer.lrr: unknown key");
  EXPECT_CONTAINS(r.err, "did you mean train.optimizer.lr?");
  EXPECT_FALSE(fs::exists(p.folder / "runs"));
}

TEST_F(Errors, ValueOutOfBoundsNamesTheBounds) {
  const Finished r = p.run({"train", "tiny.toml", "--set", "train.optimizer.lr=5"});
  EXPECT_EQ(r.exit, 2);
  EXPECT_CONTAINS(r.err, "train.optimizer.lr = 5: must be in (0, 1]");
}

TEST_F(Errors, SettingsThatDoNotFitTogetherAreRefusedBeforeTheFirstStep) {
  EXPECT_CONTAINS(p.run({"train", "tiny.toml", "--set", "train.micro_batch=3"}).err,
                  "expected a divisor of train.batch = 8, got 3");
  const Finished groups = p.run({"train", "tiny.toml", "--set", "train.micro_batch=2"});
  EXPECT_EQ(groups.exit, 2);
  EXPECT_CONTAINS(groups.err, "expected a multiple of group_size = 4, got 2");
  EXPECT_CONTAINS(p.run({"train", "tiny.toml", "--set", "generator.second_time=none"}).err,
                  "expects s or delta");
  EXPECT_CONTAINS(p.run({"train", "tiny.toml", "--set", "generator.patch_size=3"}).err,
                  "expected a divisor of 8 x 8, got 3");
  const Finished sampler =
      p.run({"train", "tiny.toml", "--set", "generator.sampler={schedule=\"explicit\", steps=3}"});
  EXPECT_EQ(sampler.exit, 2);
  EXPECT_CONTAINS(sampler.err, "expected 2 numbers for 3 steps, got 0");
  EXPECT_TRUE(p.checkpoints("runs/tiny").empty());
}

TEST_F(Errors, MissingAndCorruptData) {
  Finished r = p.run({"train", "tiny.toml", "--set", "data.images=none.idx"});
  EXPECT_EQ(r.exit, 3);
  EXPECT_CONTAINS(r.err, "none.idx");
  fs::resize_file(p.folder / "images.idx", 1000);
  r = p.run({"train", "tiny.toml"});
  EXPECT_EQ(r.exit, 3);
  EXPECT_CONTAINS(r.err, "images.idx");
  EXPECT_CONTAINS(r.err, "expected 4096 bytes");
  EXPECT_CONTAINS(r.err, "got 984");
  EXPECT_FALSE(fs::exists(p.folder / "runs/tiny/config.toml")) << "a run was left behind";
}

TEST_F(Errors, RecipeThatIsNotThere) {
  const Finished r = p.run({"train", "other.toml"});
  EXPECT_EQ(r.exit, 2);
  EXPECT_CONTAINS(r.err, "other.toml");
}

TEST_F(Errors, ARunOfAnotherConfigurationNamesTheKeys) {
  ASSERT_EQ(p.run({"train", "tiny.toml", "--set", "train.images=80"}).exit, 0);
  const Finished r =
      p.run({"train", "tiny.toml", "--set", "train.images=80", "--set", "train.seed=1"});
  EXPECT_EQ(r.exit, 2);
  EXPECT_CONTAINS(r.err, "train.seed: the run has 0, asked for 1");
  // Keys that do not make the run what it is may change.
  EXPECT_EQ(p.run({"train", "tiny.toml", "--set", "train.images=80", "--set", "log.every=1"}).exit,
            0);
}

TEST_F(Errors, ChangedDataAtAResume) {
  const pid_t child = p.start({"train", "tiny.toml", "--set", "train.images=1M"});
  while (p.checkpoints("runs/tiny").empty())
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  kill(child, SIGTERM);
  EXPECT_EQ(p.wait(child).exit, 143);
  p.write_data(60);
  const Finished r = p.run({"train", "tiny.toml", "--set", "train.images=1M"});
  EXPECT_EQ(r.exit, 3);
  EXPECT_CONTAINS(r.err, "expected the run's data");
}

TEST_F(Errors, NonFiniteLossStopsAndKeepsTheLastCheckpoint) {
  // Adam's step is at most lr: weights grow without bound until the loss overflows.
  const Finished r =
      p.run({"train", "tiny.toml", "--set", "train.optimizer.lr=1", "--set",
             "generator.objective.kernel_scale=1000", "--set", "train.images=4M", "--set",
             "train.optimizer.weight_decay=1", "--set", "train.optimizer.beta2=0", "--set",
             "train.optimizer.eps=0", "--set", "checkpoint.every=80"});
  EXPECT_EQ(r.exit, 6);
  EXPECT_CONTAINS(r.err, "expected a finite loss and gradient");
}

// A generator on latents of 64 images, of which some are NaN. Returns the arguments that train it.
std::vector<std::string> train_on_bad_latents(const Program& p, const std::vector<int>& bad) {
  p.write_tokenizer_recipe("ae.toml", 8);
  std::vector<std::string> generator = {"train", "tiny.toml"};
  for (const char* set :
       {"generator.tokenizer=runs/ae", "generator.patch_size=1", "generator.path={kind=\"ot_fm\"}",
        "generator.trunk.mlp={kind=\"moe\", num_experts=3, num_chosen=2, "
        "balance={bias_rate=1e-2}}",
        "train.images=96", "checkpoint.every=8", "checkpoint.keep_last=1000", "log.every=1"})
    generator.insert(generator.end(), {"--set", set});
  const Finished encoder = p.run({"train", "ae.toml"});
  EXPECT_EQ(encoder.exit, 0) << encoder.err;
  const Finished made = p.run(generator);  // the file of latents too
  EXPECT_EQ(made.exit, 0) << made.err;
  fs::remove_all(p.folder / "runs/tiny");
  const fs::path file = fs::directory_iterator(p.folder / "runs/ae/latents")->path();
  std::string bytes = read_file(file);
  const size_t row = 5 * 3 * sizeof(float);  // latents stand at the end
  for (const int i : bad)
    for (size_t at = bytes.size() - (64 - i) * row; at < bytes.size() - (63 - i) * row; at += 4)
      bytes.replace(at, 4, std::string("\0\0\xc0\x7f", 4));
  write_file_atomic(file, bytes);
  return generator;
}

std::map<int, nlohmann::json> log_steps(const Program& p) {
  std::map<int, nlohmann::json> steps;
  std::ifstream log(p.folder / "runs/tiny/log.jsonl");
  for (std::string line; std::getline(log, line);) {
    const auto entry = nlohmann::json::parse(line);
    if (entry.at("event") == "step") steps[entry.at("step")] = entry;
  }
  return steps;
}

TEST_F(Errors, ANonFiniteStepIsSkippedAndChangesNothing) {
  std::vector<std::string> command = train_on_bad_latents(p, {11});
  command.insert(command.end(), {"--set", "train.on_nonfinite=skip", "--json"});
  const Finished r = p.run(command);
  ASSERT_EQ(r.exit, 0) << r.err;
  const auto at = [&](int step, const char* name) {
    return sha256_file(p.folder / fmt::format("runs/tiny/checkpoints/step-{:07}", step) / name);
  };
  int skipped = 0;
  for (const auto& [step, entry] : log_steps(p)) {
    const bool flagged = entry.contains("nonfinite");
    skipped += flagged ? 1 : 0;
    if (flagged) EXPECT_CONTAINS(r.err, fmt::format("step {} is skipped", step));
    if (step == 1) continue;
    // Buffers too: the balance of the experts is in the model.
    for (const char* name : {"model.safetensors", "ema-main.safetensors", "optimizer.safetensors"})
      EXPECT_EQ(at(step, name) == at(step - 1, name), flagged) << step << " " << name;
  }
  EXPECT_GE(skipped, 1);  // 12 steps of 8 of 64 images
  EXPECT_LE(skipped, 2);
  const std::string last = r.out.substr(r.out.rfind('\n', r.out.size() - 2) + 1);
  EXPECT_EQ(nlohmann::json::parse(last).at("result").at("skipped"), skipped);
}

TEST_F(Errors, ANonFiniteStepStopsBeforeItIsSavedAndSkippingHasAnEnd) {
  const std::vector<std::string> command = train_on_bad_latents(p, {11});
  const Finished r = p.run(command);
  EXPECT_EQ(r.exit, 6);
  const auto all = p.checkpoints("runs/tiny");
  const int saved = static_cast<int>(all.size());
  EXPECT_CONTAINS(r.err, fmt::format("step {}: expected a finite loss", saved + 1));
  EXPECT_CONTAINS(r.err, fmt::format("images [{}, {}) of the run", saved * 8, saved * 8 + 8));
  EXPECT_CONTAINS(r.err, saved == 0 ? "checkpoint: none" : all.back().filename().string());
  EXPECT_EQ(log_steps(p).size(), all.size());

  fs::remove_all(p.folder / "runs");
  std::vector<int> every(64);
  for (int i = 0; i < 64; ++i) every[i] = i;
  std::vector<std::string> skip = train_on_bad_latents(p, every);
  skip.insert(skip.end(), {"--set", "train.on_nonfinite=skip", "--set", "train.max_skips=3"});
  const Finished ended = p.run(skip);
  EXPECT_EQ(ended.exit, 6);
  EXPECT_CONTAINS(ended.err, "step 4: expected a finite loss");
  EXPECT_CONTAINS(ended.err, "after 3 skipped steps");
}

TEST_F(Errors, OutOfMemoryNamesTheSettingThatFits) {
  const auto limited = [&](std::vector<std::string> more) {
    std::vector<std::string> command = {"train", "tiny.toml",         "--set", "train.batch=32768",
                                        "--set", "train.images=32768"};
    command.insert(command.end(), more.begin(), more.end());
    return p.run(command, [] {
      const rlimit limit = {.rlim_cur = 600'000'000, .rlim_max = 600'000'000};
      setrlimit(RLIMIT_DATA, &limit);
    });
  };
  Finished r = limited({});
  EXPECT_EQ(r.exit, 5);
  EXPECT_CONTAINS(r.err, "out of memory with 32768 images a pass: you tried to allocate");
  EXPECT_CONTAINS(r.err, "; peak ");
  for (int micro = 16384; r.exit != 0 && micro >= 2048; micro /= 2) {
    const std::string set = fmt::format("train.micro_batch={}", micro);
    EXPECT_CONTAINS(r.err, "hint: --set " + set);
    r = limited({"--set", set});
  }
  EXPECT_EQ(r.exit, 0) << r.err;
}

TEST_F(Errors, NoGpu) {
  if (torch::cuda::is_available()) GTEST_SKIP() << "this machine has a GPU";
  const Finished r = p.run({"train", "tiny.toml", "--device", "cuda"});
  EXPECT_EQ(r.exit, 5);
  EXPECT_CONTAINS(r.err, "expected an NVIDIA GPU");
  const Finished json = p.run({"train", "tiny.toml", "--device", "cuda", "--json"});
  EXPECT_EQ(json.exit, 5);
  EXPECT_EQ(nlohmann::json::parse(json.out).at("error").at("exit"), 5);
}

TEST_F(Errors, AFullDiskKeepsThePreviousCheckpoint) {
  ASSERT_EQ(p.run({"train", "tiny.toml", "--set", "train.images=400"}).exit, 0);
  const auto before = p.checkpoints("runs/tiny");
  ASSERT_EQ(before.size(), 1u);
  // The same run, made longer by hand, under a limit on the size of a file.
  std::string config = read_file(p.folder / "runs/tiny/config.toml");
  config.replace(config.find("images = 400"), 12, "images = 800");
  write_file_atomic(p.folder / "runs/tiny/config.toml", config);
  const Finished r = p.run({"train", "tiny.toml", "--set", "train.images=800"}, [] {
    const rlimit limit = {.rlim_cur = 20'000, .rlim_max = 20'000};
    setrlimit(RLIMIT_FSIZE, &limit);
  });
  EXPECT_EQ(r.exit, 7) << r.err;
  EXPECT_CONTAINS(r.err, ".safetensors");
  EXPECT_EQ(p.checkpoints("runs/tiny"), before);
  EXPECT_EQ(p.run({"train", "tiny.toml", "--set", "train.images=800"}).exit, 0);
}

TEST_F(Errors, AlteredCheckpointsFallBackToTheOneBefore) {
  ASSERT_EQ(p.run({"train", "tiny.toml"}).exit, 0);
  const auto saved = p.checkpoints("runs/tiny");
  ASSERT_EQ(saved.size(), 3u);
  // Altered byte in the newest, truncation in the one before.
  std::string bytes = read_file(saved[2] / "model.safetensors");
  bytes[bytes.size() - 5] ^= 1;
  std::ofstream(saved[2] / "model.safetensors", std::ios::binary) << bytes;
  fs::resize_file(saved[1] / "optimizer.safetensors", 100);
  const std::string good = sha256_file(saved[0] / "model.safetensors");
  const Finished r = p.run({"train", "tiny.toml"});
  EXPECT_EQ(r.exit, 0) << r.err;
  EXPECT_CONTAINS(r.err, "model.safetensors");
  EXPECT_CONTAINS(r.err, "optimizer.safetensors");
  EXPECT_EQ(sha256_file(saved[0] / "model.safetensors"), good);
  // None left that verifies.
  for (const auto& folder : p.checkpoints("runs/tiny"))
    fs::resize_file(folder / "model.safetensors", 50);
  EXPECT_EQ(p.run({"train", "tiny.toml"}).exit, 4);
  EXPECT_EQ(p.run({"sample", "runs/tiny"}).exit, 4);
}

TEST_F(Errors, BadFlagsAndNames) {
  EXPECT_EQ(p.run({"trane", "tiny.toml"}).exit, 2);
  EXPECT_EQ(p.run({"sample", "no-such-run"}).exit, 2);
  EXPECT_EQ(p.run({"config", "check", "tiny.toml", "--set", "task=generatr"}).exit, 2);
  p.write("broken.toml", "task = \"generator\n");
  const Finished r = p.run({"config", "check", "broken.toml"});
  EXPECT_EQ(r.exit, 2);
  EXPECT_CONTAINS(r.err, "broken.toml:1");
}

TEST_F(Errors, BadImagesAreListedWithExitCode3) {
  const Image image{.height = 4, .width = 4, .channels = 1, .pixels = std::vector<uint8_t>(16, 7)};
  p.write("photos/a/good.png", encode_png(image));
  p.write("photos/a/text.png", "not an image");
  p.write("photos/b/empty.jpg", "");
  const Finished r = p.run({"data", "check", "photos", "--sheet", "sheet.png"});
  EXPECT_EQ(r.exit, 3);
  EXPECT_CONTAINS(r.out, "text.png");
  EXPECT_CONTAINS(r.out, "empty.jpg");
  EXPECT_TRUE(fs::exists(p.folder / "sheet.png"));
}

}  // namespace
}  // namespace sigma
