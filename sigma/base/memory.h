// Running out of memory: how an exception says it, and how much was in use.
#pragma once

#include <torch/types.h>

#include <exception>
#include <string>

namespace sigma {

/// Whether an allocation failed, on the host or on a GPU.
bool is_out_of_memory(const std::exception& error);
/// Its first line from the part on that says how much was asked for.
std::string allocation_request(const std::exception& error);
/// Bytes held at once so far, at most: by the allocator of a GPU, or by the process.
int64_t peak_memory(torch::Device device);

}  // namespace sigma
