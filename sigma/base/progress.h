// Progress for people, on stderr: one line redrawn on a terminal, plain lines now and then
// elsewhere. Torch-free.
#pragma once

#include <chrono>
#include <string>

namespace sigma {

class Progress {
 public:
  /// `interval`: seconds between plain lines. `quiet`: nothing is printed.
  Progress(double interval, bool quiet);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  /// Shows `line` if enough time has passed (ten redraws a second on a terminal), or always if
  /// `force`.
  void show(const std::string& line, bool force = false);
  /// Ends a redrawn line, so that other output starts on a new one.
  void end_line();

 private:
  double interval_;
  bool quiet_;
  bool terminal_;
  bool open_ = false;
  bool shown_ = false;
  std::chrono::steady_clock::time_point last_;
};

/// A line for people on stderr. That nobody reads it (a closed pipe, a full disk) is no error.
void print_note(const std::string& line);

/// 75 -> "1:15", 3675 -> "1:01:15".
std::string duration_text(double seconds);

}  // namespace sigma
