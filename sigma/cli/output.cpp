#include "sigma/cli/output.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "sigma/base/error.h"

namespace sigma {

void write_stdout(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0)
    return;
  const int code = errno;
  if (code == EPIPE) return;
  fail(ErrorKind::kIo, "standard output: cannot write {} bytes: {}", text.size(),
       std::strerror(code));
}

bool takes_color(int descriptor, const std::string& when) {
  if (when != "auto") return when == "always";
  const char* none = std::getenv("NO_COLOR");
  const char* terminal = std::getenv("TERM");
  return isatty(descriptor) != 0 && (!none || *none == '\0') &&
         (!terminal || std::strcmp(terminal, "dumb") != 0);
}

std::string painted(const std::string& text, int ansi, bool color) {
  return color ? fmt::format("\x1b[{}m{}\x1b[0m", ansi, text) : text;
}

void check_output(const std::string& path, const GlobalOptions& global) {
  // A device or a pipe has nothing to lose.
  std::error_code ignored;
  if (global.force || !std::filesystem::is_regular_file(path, ignored)) return;
  throw Error(ErrorKind::kUsage, fmt::format("{}: expected a new file, found one", path),
              "-f overwrites it, -o names another");
}

CommandResult planned(const std::vector<std::string>& files, const std::string& about,
                      const Json& more) {
  CommandResult out{.result = {{"dry_run", true}, {"files", files}}};
  out.result.update(more);
  out.text = about + "\n";
  for (const std::string& file : files) out.text += fmt::format("would write {}\n", file);
  if (files.empty()) out.text += "would write no file\n";
  return out;
}

}  // namespace sigma
