#include "sigma/base/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "sigma/base/error.h"

namespace sigma {
namespace {

constexpr double kRedraw = 0.1;  // seconds

bool stderr_is_terminal() {
  const char* term = std::getenv("TERM");
  return isatty(STDERR_FILENO) != 0 && (!term || std::strcmp(term, "dumb") != 0);
}

}  // namespace

Progress::Progress(double interval, bool quiet)
    : interval_(interval), quiet_(quiet), terminal_(stderr_is_terminal()) {}

Progress::~Progress() { end_line(); }

void Progress::show(const std::string& line, bool force) {
  if (quiet_) return;
  const auto now = std::chrono::steady_clock::now();
  const double passed = std::chrono::duration<double>(now - last_).count();
  if (shown_ && !force && passed < (terminal_ ? kRedraw : interval_)) return;
  last_ = now;
  shown_ = true;
  if (terminal_) {
    std::fputs(("\r\x1b[K" + line).c_str(), stderr);
    std::fflush(stderr);
    open_ = true;
  } else {
    print_note(line);
  }
}

void Progress::end_line() {
  if (open_) print_note("");
  open_ = false;
}

void print_note(const std::string& line) {
  // fmt::print would throw where the stream takes no more.
  std::fputs((line + "\n").c_str(), stderr);
  std::fflush(stderr);
}

std::string duration_text(double seconds) {
  const auto total = static_cast<long long>(std::llround(std::max(0.0, seconds)));
  const long long hours = total / 3600;
  const long long minutes = total / 60 % 60;
  if (hours > 0) return fmt::format("{}:{:02}:{:02}", hours, minutes, total % 60);
  return fmt::format("{}:{:02}", minutes, total % 60);
}

}  // namespace sigma
