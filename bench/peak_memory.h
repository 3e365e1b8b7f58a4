// How much memory a call takes on top of what the process holds: the highest resident size during
// it, by Linux's counter.
#pragma once

#include <malloc.h>

#include <fstream>
#include <functional>
#include <string>

namespace sigma::bench {

/// A line of /proc/self/status in bytes.
inline double status_bytes(const std::string& key) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with(key + ":")) return std::stod(line.substr(key.size() + 1)) * 1024;
  return 0;
}

/// -1 where the system does not let a process start its peak again.
inline double peak_bytes(const std::function<void()>& f) {
  malloc_trim(0);
  std::ofstream reset("/proc/self/clear_refs");
  reset << "5" << std::flush;
  if (!reset) return -1;
  const double before = status_bytes("VmRSS");
  f();
  return status_bytes("VmHWM") - before;
}

}  // namespace sigma::bench
