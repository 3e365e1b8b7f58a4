// The program: parses, calls one function, prints, and maps every error to its exit code.
#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>

#include "sigma/base/error.h"
#include "sigma/base/memory.h"
#include "sigma/cli/cli.h"
#include "sigma/cli/commands.h"

namespace sigma {
namespace {

struct Failure {
  std::string kind;
  int exit_code;
  std::string message;
  std::string hint;
};

Failure describe(const std::exception& error) {
  if (const auto* own = dynamic_cast<const Error*>(&error)) {
    return {kind_name(own->kind()), own->exit_code(), own->what(), own->hint()};
  }
  const std::string text = error.what();
  const std::string first_line = text.substr(0, text.find('\n'));
  constexpr int kDevice = static_cast<int>(ErrorKind::kDevice);
  if (is_out_of_memory(error)) {  // in a training step: see the trainer
    return {"device", kDevice, "out of memory: " + allocation_request(error),
            "fewer images at once help: --batch, or --set train.micro_batch=N"};
  }
  if (text.find("CUDA error") != std::string::npos) return {"device", kDevice, first_line, ""};
  if (dynamic_cast<const std::filesystem::filesystem_error*>(&error)) {
    return {"io", static_cast<int>(ErrorKind::kIo), first_line, ""};
  }
  return {"failure", 1, first_line, ""};
}

int report(const Failure& failure, const std::string& command, bool json) {
  if (json) {
    const Json out = {{"command", command},
                      {"ok", false},
                      {"error",
                       {{"kind", failure.kind},
                        {"exit", failure.exit_code},
                        {"message", failure.message},
                        {"hint", failure.hint}}}};
    fmt::print("{}\n", out.dump(-1, ' ', false, Json::error_handler_t::replace));
  }
  fmt::print(stderr, "sigma: {}\n", failure.message);
  if (!failure.hint.empty()) fmt::print(stderr, "hint: {}\n", failure.hint);
  return failure.exit_code;
}

int main_checked(int argc, char** argv) {
  CLI::App app;
  Commands commands(app, argc, argv);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help
    return report({"usage", static_cast<int>(ErrorKind::kUsage), error.what(), "see sigma --help"},
                  "", commands.json());
  }
  try {
    const CommandResult result = commands.run();
    if (commands.json()) {
      const Json out = {
          {"command", commands.name()}, {"ok", result.exit_code == 0}, {"result", result.result}};
      fmt::print("{}\n", out.dump(-1, ' ', false, Json::error_handler_t::replace));
    } else {
      std::fwrite(result.text.data(), 1, result.text.size(), stdout);
    }
    // A closed pipe ends the output quietly; any other write error is an error.
    if (std::fflush(stdout) != 0 && errno != EPIPE) {
      return report({"io", static_cast<int>(ErrorKind::kIo), "standard output: write failed", ""},
                    commands.name(), false);
    }
    return result.exit_code;
  } catch (const std::exception& error) {
    return report(describe(error), commands.name(), commands.json());
  }
}

}  // namespace
}  // namespace sigma

int main(int argc, char** argv) { return sigma::main_checked(argc, argv); }
