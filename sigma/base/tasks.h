// Work split over threads.
#pragma once

#include <ATen/Parallel.h>

#include <atomic>
#include <cstdint>

namespace sigma {

/// Tasks are handed out one by one: their lengths differ. Each writes what no other writes; products
/// inside use one thread, so that the bits do not depend on how many there are.
template <typename F>
void run_tasks(int64_t tasks, F task) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < tasks; i = next++) task(i);
  });
}

}  // namespace sigma
