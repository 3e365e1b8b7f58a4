// Every exit code by a real cause, one after the other; `sigma --help` prints the same list.
#include <sys/file.h>

#include "sigma/io/images.h"
#include "sigma/train/run_log.h"
#include "tests/cli/program.h"

namespace sigma {
namespace {

class ExitCodes : public ::testing::Test {
 protected:
  ExitCodes() : p("exit") {
    p.write_data();
    p.write_recipe();
  }
  int train(std::vector<std::string> more, const std::function<void()>& prepare = {}) {
    more.insert(more.begin(), {"train", "tiny.toml", "--set", "train.images=160"});
    last = p.run(more, prepare);
    return last.exit;
  }
  // A long run that has saved once.
  pid_t start_long(const std::string& run) {
    const pid_t child = p.start({"train", "tiny.toml", "--run", run, "--set", "train.images=1G"});
    while (p.checkpoints(run).empty()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    return child;
  }
  static int step(const fs::path& checkpoint) {
    return std::stoi(checkpoint.filename().string().substr(5));
  }
  Program p;
  Finished last;
};

TEST_F(ExitCodes, HelpListsThem) {
  const std::string help = p.run({"--help"}).out;
  for (const char* line : {"\n  0  ", "\n  1  ", "\n  2  ", "\n  3  ", "\n  4  ", "\n  5  ",
                           "\n  6  ", "\n  7  ", "\n  129, 130, 143  ", "\n  128 + n  "})
    EXPECT_CONTAINS(help, line);
}

TEST_F(ExitCodes, ZeroWhenDoneAndWhenNothingIsLeftToDo) {
  EXPECT_EQ(train({}), 0) << last.err;
  EXPECT_EQ(train({}), 0);
  EXPECT_CONTAINS(last.out, "Nothing to do");
}

TEST_F(ExitCodes, OneWhenRegeneratedImagesDiffer) {
  ASSERT_EQ(train({}), 0);
  ASSERT_EQ(p.run({"sample", "runs/tiny", "-o", "a/", "--count", "2"}).exit, 0);
  // The first image's record on the second one's pixels.
  const auto bytes = [&](const char* name) { return read_file(p.folder / name); };
  const Image second = decode_image(bytes("a/000001.png"), "a");
  p.write("mixed.png", encode_png(second, read_provenance(bytes("a/000000.png"), "a")));
  EXPECT_EQ(p.run({"regenerate", "mixed.png"}).exit, 1);
}

TEST_F(ExitCodes, TwoForABadKey) { EXPECT_EQ(train({"--set", "train.optimizer.lrr=1"}), 2); }

TEST_F(ExitCodes, ThreeForDamagedData) {
  fs::resize_file(p.folder / "images.idx", 1000);
  EXPECT_EQ(train({}), 3);
}

TEST_F(ExitCodes, FourWithoutACheckpointThatVerifies) {
  ASSERT_EQ(train({}), 0);
  for (const auto& folder : p.checkpoints("runs/tiny"))
    fs::resize_file(folder / "model.safetensors", 50);
  EXPECT_EQ(p.run({"sample", "runs/tiny"}).exit, 4);
}

TEST_F(ExitCodes, FiveOutOfMemory) {
  // Weights of 40 GiB within an address space of 16: refused before any is touched.
  EXPECT_EQ(train({"--set", "generator.trunk.hidden_size=8192", "--set", "generator.trunk.depth=8"},
                  [] {
                    const rlimit limit = {.rlim_cur = 16ull << 30, .rlim_max = 16ull << 30};
                    setrlimit(RLIMIT_AS, &limit);
                  }),
            5)
      << last.err;
  EXPECT_CONTAINS(last.err, "out of memory");
}

TEST_F(ExitCodes, SixForANonFiniteLoss) {
  EXPECT_EQ(
      train({"--set", "train.images=4M", "--set", "train.optimizer={lr=1, beta2=0, eps=0}", "--set",
             "train.optimizer.weight_decay=1", "--set", "generator.objective.kernel_scale=1000"}),
      6)
      << last.err;
}

TEST_F(ExitCodes, SevenForALockedRunAndAFileThatCannotGrow) {
  ASSERT_EQ(train({}), 0);
  const int lock = open((p.folder / "runs/tiny/lock").c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_EQ(flock(lock, LOCK_EX), 0);
  EXPECT_EQ(train({}), 7);
  EXPECT_CONTAINS(last.err, "locked by another process");
  close(lock);
  EXPECT_EQ(train({"--run", "runs/small"},
                  [] {
                    const rlimit limit = {.rlim_cur = 20'000, .rlim_max = 20'000};
                    setrlimit(RLIMIT_FSIZE, &limit);
                  }),
            7);
}

TEST_F(ExitCodes, SignalsSaveFirst) {
  std::string run;
  fs::path saved;
  for (const auto& [signal, code] : {std::pair{SIGINT, 130}, {SIGTERM, 143}, {SIGHUP, 129}}) {
    run = "runs/" + std::to_string(signal);
    const pid_t child = start_long(run);
    kill(child, signal);
    const Finished r = p.wait(child);
    EXPECT_EQ(r.exit, code);
    saved = p.checkpoints(run).back();
    EXPECT_CONTAINS(r.out, fmt::format("stopped by signal {} after step {};", signal, step(saved)));
  }
  const pid_t child = start_long(run);
  while (p.checkpoints(run).back() == saved)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  kill(child, SIGTERM);
  EXPECT_EQ(p.wait(child).exit, 143);
  EXPECT_EQ(read_run_log(p.folder / run).of_start("step"), step(saved));
}

TEST_F(ExitCodes, ASecondSignalEndsAtOnce) {
  const pid_t child = start_long("runs/twice");
  // Stopped, so that both wait for it together: no step ends between them.
  kill(child, SIGSTOP);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, WUNTRACED), child);
  ASSERT_TRUE(WIFSTOPPED(status));
  const auto saved = p.checkpoints("runs/twice");
  kill(child, SIGINT);
  kill(child, SIGTERM);
  const auto start = std::chrono::steady_clock::now();
  kill(child, SIGCONT);
  const Finished r = p.wait(child);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
  // The one that comes second gives the code, and either may.
  EXPECT_TRUE(r.exit == 130 || r.exit == 143) << r.exit;
  EXPECT_EQ(r.out, "");
  EXPECT_EQ(p.checkpoints("runs/twice"), saved);
}

}  // namespace
}  // namespace sigma
