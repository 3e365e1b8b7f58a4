#include "sigma/base/memory.h"

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/util/Exception.h>
#include <sys/resource.h>
#include <torch/types.h>

#include <new>
#include <string_view>

namespace sigma {

bool is_out_of_memory(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error) ||
      dynamic_cast<const c10::OutOfMemoryError*>(&error))
    return true;
  const std::string_view text = error.what();
  // Torch's allocator of the host, CUDA itself, and its libraries' work spaces have no type of
  // their own.
  for (const char* words : {"DefaultCPUAllocator", "CUDA error: out of memory", "_ALLOC_FAILED"})
    if (text.find(words) != std::string_view::npos) return true;
  return false;
}

std::string allocation_request(const std::exception& error) {
  const std::string text = error.what();
  const std::string line = text.substr(0, text.find('\n'));
  const size_t start = line.find("you tried to allocate");
  return start == std::string::npos ? line : line.substr(start);
}

int64_t peak_memory(torch::Device device) {
  if (device.is_cpu()) {
    rusage usage = {};
    getrusage(RUSAGE_SELF, &usage);
    return int64_t{usage.ru_maxrss} * 1024;
  }
  constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  return c10::getDeviceAllocator(device.type())
      ->getDeviceStats(device.index())
      .allocated_bytes[kAll]
      .peak;
}

}  // namespace sigma
