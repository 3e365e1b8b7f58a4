// The program: parses, calls one function, prints, and maps every error to its exit code.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <string_view>

#include "sigma/base/error.h"
#include "sigma/base/memory.h"
#include "sigma/base/progress.h"
#include "sigma/cli/cli.h"
#include "sigma/cli/commands.h"
#include "sigma/cli/output.h"
#include "sigma/io/files.h"

namespace sigma {
namespace {

constexpr int kRed = 31, kCyan = 36;  // ANSI

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

std::string line_of(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

int report(const Failure& failure, const std::string& command, const GlobalOptions& global) {
  if (global.json) {
    const Json out = {{"command", command},
                      {"ok", false},
                      {"error",
                       {{"kind", failure.kind},
                        {"exit", failure.exit_code},
                        {"message", failure.message},
                        {"hint", failure.hint}}}};
    try {
      write_stdout(line_of(out));
    } catch (const Error& error) {
      print_note(std::string("sigma: ") + error.what());
    }
  }
  const bool color = takes_color(STDERR_FILENO, global.color);
  print_note(painted("sigma:", kRed, color) + " " + failure.message);
  if (!failure.hint.empty()) print_note(painted("hint:", kCyan, color) + " " + failure.hint);
  return failure.exit_code;
}

int main_help(const Commands& commands, bool full) {
  try {
    write_stdout(commands.help(full));
    return 0;
  } catch (const std::exception& error) {
    return report(describe(error), "", commands.global());
  }
}

// A flag that cannot be parsed hides those after it.
GlobalOptions options_of_refused(const Commands& commands, int argc, char** argv) {
  GlobalOptions out = commands.global();
  out.json = out.json || std::find(argv, argv + argc, std::string_view("--json")) != argv + argc;
  return out;
}

void print(const CommandResult& result, const Commands& commands) {
  const GlobalOptions& global = commands.global();
  const std::string text = global.json ? line_of({{"command", commands.name()},
                                                  {"ok", result.exit_code == 0},
                                                  {"result", result.result}})
                                       : result.text;
  if (global.out.empty() || global.out == "-" || global.dry_run) write_stdout(text);
  else write_file_atomic(global.out, text);
}

int main_checked(int argc, char** argv) {
  // A write beyond a closed pipe or a limit of size is an error, not the end.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  CLI::App app;
  Commands commands(app, argc, argv);
  const GlobalOptions& global = commands.global();
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    return main_help(commands, /*full=*/false);
  } catch (const CLI::CallForAllHelp&) {
    return main_help(commands, /*full=*/true);
  } catch (const CLI::ParseError& error) {
    return report(describe(commands.refusal(error.what())), commands.refused_name(),
                  options_of_refused(commands, argc, argv));
  }
  const auto start = std::chrono::steady_clock::now();
  if (global.verbose) {
    const std::string build = run_version().text;
    print_note(build.substr(0, build.size() - 1));  // its own line end
  }
  int exit_code = 0;
  try {
    const CommandResult result = commands.run();
    print(result, commands);
    exit_code = result.exit_code;
  } catch (const std::exception& error) {
    if (global.verbose) print_note(error.what());  // all lines
    exit_code = report(describe(error), commands.name(), global);
  }
  if (global.verbose) {
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
    print_note(fmt::format("{}: {:.2f} s", commands.name(), passed.count()));
  }
  return exit_code;
}

}  // namespace
}  // namespace sigma

int main(int argc, char** argv) { return sigma::main_checked(argc, argv); }
