// Work split over threads.
#pragma once

#include <ATen/Parallel.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <thread>

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

constexpr int64_t kCommitParts = 8;
constexpr size_t kTasksAhead = 3;

/// As run_tasks, then `commit(i, part)` for parts 0 .. kCommitParts - 1: every part of task i after the
/// same part of task i - 1. Tasks so add to what they share in one order on any number of threads. A
/// thread whose turn has not come takes up to kTasksAhead further tasks before it waits.
template <typename F, typename G>
void run_tasks_in_order(int64_t tasks, F task, G commit) {
  std::atomic<int64_t> next{0};
  std::array<std::atomic<int64_t>, kCommitParts> turn{};  // the task that may commit a part
  std::atomic<bool> failed{false};                        // nobody waits for what does not come
  const auto wait = [&](int64_t i, size_t part) {
    while (turn[part].load() != i && !failed.load()) std::this_thread::yield();
  };
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    std::deque<int64_t> done;
    const auto commit_first = [&] {
      for (size_t part = 0; part < kCommitParts; ++part) {
        wait(done.front(), part);
        if (failed.load()) return;
        commit(done.front(), static_cast<int64_t>(part));
        turn[part].store(done.front() + 1);
      }
      done.pop_front();
    };
    try {
      for (int64_t i = next++; i < tasks && !failed.load(); i = next++) {
        task(i);
        done.push_back(i);
        while (!done.empty() && !failed.load() &&
               (done.size() > kTasksAhead || turn[0].load() == done.front()))
          commit_first();
      }
      while (!done.empty() && !failed.load()) commit_first();
    } catch (...) {
      failed = true;
      throw;
    }
  });
}

}  // namespace sigma
