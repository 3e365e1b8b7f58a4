// Runs build/sigma as a user would, on tiny data that the tests make themselves.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "sigma/io/files.h"

namespace sigma {

namespace fs = std::filesystem;

struct Finished {
  int exit = -1;
  std::string out;
  std::string err;
};

class Program {
 public:
  explicit Program(const std::string& name)
      : folder(fs::temp_directory_path() / ("sigma-" + name + "-" + std::to_string(getpid()))) {
    fs::remove_all(folder);
    fs::create_directories(folder);
  }
  ~Program() {
    std::error_code ignored;
    fs::remove_all(folder, ignored);
  }

  fs::path folder;

  std::string path(const std::string& name) const { return (folder / name).string(); }

  /// Starts the program; `prepare` runs in the child before it.
  pid_t start(const std::vector<std::string>& arguments,
              const std::function<void()>& prepare = {}) const {
    return start_program(SIGMA_BINARY_DIR "/sigma", arguments, prepare);
  }

  /// The same with another program.
  pid_t start_program(std::string program, const std::vector<std::string>& arguments,
                      const std::function<void()>& prepare = {}) const {
    const pid_t child = fork();
    if (child != 0) return child;
    if (!freopen(path("stdout").c_str(), "w", stdout) ||
        !freopen(path("stderr").c_str(), "w", stderr))
      _exit(99);
    if (chdir(folder.c_str()) != 0) _exit(99);
    setenv("OMP_NUM_THREADS", "1", 1);
    if (prepare) prepare();
    std::vector<char*> argv = {program.data()};
    std::vector<std::string> copy = arguments;
    for (std::string& argument : copy) argv.push_back(argument.data());
    argv.push_back(nullptr);
    execv(program.c_str(), argv.data());
    _exit(99);
  }

  Finished wait(pid_t child) const {
    int status = 0;
    waitpid(child, &status, 0);
    return {.exit = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
            .out = read_file(folder / "stdout"),
            .err = read_file(folder / "stderr")};
  }

  Finished run(const std::vector<std::string>& arguments,
               const std::function<void()>& prepare = {}) const {
    return wait(start(arguments, prepare));
  }

  Finished run_program(const std::string& program,
                       const std::vector<std::string>& arguments) const {
    return wait(start_program(program, arguments));
  }

  void write(const std::string& name, const std::string& text) const {
    fs::create_directories((folder / name).parent_path());
    std::ofstream(folder / name, std::ios::binary) << text;
  }

  /// images.idx and labels.idx: `count` 8x8 images of 4 classes (a bright quadrant and some
  /// texture).
  void write_data(int count = 64, const std::string& images = "images.idx",
                  const std::string& labels = "labels.idx") const {
    const auto be = [](uint32_t v) {
      return std::string{static_cast<char>(v >> 24), static_cast<char>(v >> 16),
                         static_cast<char>(v >> 8), static_cast<char>(v)};
    };
    std::string pixels =
        std::string("\0\0\x08\x03", 4) + be(static_cast<uint32_t>(count)) + be(8) + be(8);
    std::string classes = std::string("\0\0\x08\x01", 4) + be(static_cast<uint32_t>(count));
    for (int i = 0; i < count; ++i) {
      const int label = i % 4;
      classes += static_cast<char>(label);
      for (int y = 0; y < 8; ++y) {
        for (int x = 0; x < 8; ++x) {
          const bool bright = (y / 4) * 2 + x / 4 == label;
          pixels += static_cast<char>((bright ? 160 : 20) + (i * 7 + y * 3 + x) % 60);
        }
      }
    }
    write(images, pixels);
    write(labels, classes);
  }

  /// A tokenizer of the images of write_data(), for 5 latents of 3 numbers.
  void write_tokenizer_recipe(const std::string& name, int images) const {
    write(name, R"(task = "tokenizer"
[data]
kind = "idx"
images = "images.idx"
labels = "labels.idx"
[tokenizer]
patch_size = 4
bottleneck = { dim = 3 }
latent_norm = { images = 100 }
[tokenizer.encoder]
queries = 5
trunk = { hidden_size = 16, depth = 1, num_heads = 2, position = "learned" }
[tokenizer.decoder]
trunk = { hidden_size = 16, depth = 1, num_heads = 2, position = "none", rope = { kind = "axial" } }
[train]
batch = 8
)" + std::string("images = ") +
                    std::to_string(images) + "\n");
  }

  /// A generator of a few thousand parameters that trains in milliseconds a step.
  void write_recipe(const std::string& name = "tiny.toml", const std::string& extra = "") const {
    write(name, R"(task = "generator"
[data]
kind = "idx"
images = "images.idx"
labels = "labels.idx"
threads = 0
[generator]
num_classes = 4
patch_size = 4
path = { kind = "ot_fm", t_min = 0.006 }
[generator.trunk]
hidden_size = 16
depth = 1
num_heads = 2
[generator.objective]
kind = "imm"
min_ts_gap = 1e-4
[train]
images = 1600
batch = 8
optimizer = { lr = 1e-3, eps = 1e-10 }
schedule = { kind = "cosine", warmup_steps = 5 }
[checkpoint]
every = 400
[log]
every = 10
)" + extra);
  }

  std::vector<fs::path> checkpoints(const std::string& run) const {
    std::vector<fs::path> out;
    if (fs::is_directory(folder / run / "checkpoints")) {
      for (const auto& entry : fs::directory_iterator(folder / run / "checkpoints")) {
        if (entry.path().filename().string().starts_with("step-")) out.push_back(entry.path());
      }
    }
    std::sort(out.begin(), out.end());
    return out;
  }
};

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

#define EXPECT_CONTAINS(text, part) \
  EXPECT_TRUE(contains(text, part)) << "expected \"" << (part) << "\" in:\n" << (text)

}  // namespace sigma
