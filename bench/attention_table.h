// Tables of bench/attention_gpu, and the rows that its Python side adds.
#pragma once

#include <torch/types.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <string>
#include <vector>

#include "bench/attention_cases.h"
#include "bench/gpu_timing.h"
#include "sigma/base/config.h"
#include "sigma/base/error.h"
#include "tests/testing/scratch.h"

namespace sigma::bench {

struct Table {
  std::string name, title, goal;
  double flop = 0;  // forward
  std::vector<Row> rows;
  bool missed = false;
};

inline void print(const Table& t, bool json) {
  const auto rate = [](double flop, double ms) { return ms > 0 ? flop / ms / 1e9 : 0; };
  if (!json)
    fmt::print("\n{} ({})\ngoal: {}{}\n{:<46}{:>9}{:>9}{:>9}{:>9}{:>8}{:>10}{:>10}\n", t.title,
               t.name, t.goal, t.missed ? ": missed" : "", "ms, listed TFLOP/s", "forward",
               "backward", "forward", "backward", "GB", "error", "gradients");
  for (const Row& r : t.rows) {
    const double error = r.errors.empty() ? 0 : r.errors[0];
    const double worst =
        r.errors.size() < 2 ? 0 : *std::max_element(r.errors.begin() + 1, r.errors.end());
    const double forward = rate(t.flop, r.forward), backward = rate(2.5 * t.flop, r.backward);
    if (json)
      fmt::print("{}\n", sigma::Json({{"case", t.name},
                                      {"side", r.side},
                                      {"forward_ms", r.forward},
                                      {"backward_ms", r.backward},
                                      {"forward_tflops", forward},
                                      {"backward_tflops", backward},
                                      {"memory", r.memory},
                                      {"errors", r.errors},
                                      {"failed", r.failed}})
                             .dump());
    else if (!r.failed.empty()) fmt::print("{:<46} {}\n", r.side, r.failed);
    else
      fmt::print("{:<46}{:>9.2f}{:>9.2f}{:>9.0f}{:>9.0f}{:>8.2f}{:>10.1e}{:>10.1e}\n", r.side,
                 r.forward, r.backward, forward, backward, r.memory / 1e9, error, worst);
  }
  std::fflush(stdout);
}

/// Rows of bench/attention_gpu.py, in a folder that is removed afterwards.
inline std::vector<Row> python_rows(const SparseCase& c, const torch::Tensor& lists,
                                    const std::string& python, const std::string& peers) {
  const sigma::Scratch folder;
  const torch::Tensor host = lists.cpu();
  const std::string file =
      folder.write("lists", {static_cast<const char*>(host.data_ptr()), host.nbytes()});
  const sigma::Json described({{"name", c.name},
                               {"H", c.H},
                               {"G", c.G},
                               {"N", c.N},
                               {"D", c.D},
                               {"n", c.n},
                               {"block", kBlock},
                               {"tiles", c.tiles},
                               {"causal", !c.tiles},
                               {"lists", file}});
  std::string command = fmt::format("'{}' '{}/bench/attention_gpu.py' '{}'", python,
                                    SIGMA_SOURCE_DIR, folder.write("case.json", described.dump()));
  if (!peers.empty()) command += fmt::format(" --peers '{}'", peers);
  FILE* pipe = popen(command.c_str(), "r");
  SIGMA_CHECK(kFailure, pipe != nullptr, "cannot start {}", python);
  std::vector<Row> rows;
  std::array<char, 4096> text{};
  while (fgets(text.data(), text.size(), pipe)) {
    const auto line = sigma::Json::parse(text.data(), nullptr, /*allow_exceptions=*/false);
    if (!line.is_object()) continue;
    rows.push_back({.side = line.value("side", ""),
                    .forward = line.value("forward_ms", 0.0),
                    .backward = line.value("backward_ms", 0.0),
                    .memory = line.value("memory", 0.0),
                    .errors = line.value("errors", std::vector<double>()),
                    .failed = line.value("failed", "")});
  }
  const bool ended_well = pclose(pipe) == 0;
  SIGMA_CHECK(kFailure, ended_well, "the Python side failed: {}", command);
  return rows;
}

}  // namespace sigma::bench
