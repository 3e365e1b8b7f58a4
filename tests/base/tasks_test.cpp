// Work split over threads, and sums in one order.
#include "sigma/base/tasks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

namespace sigma {
namespace {

// As many threads as the test asks for, and back.
struct Threads {
  explicit Threads(int n) : before(at::get_num_threads()) { at::set_num_threads(n); }
  ~Threads() { at::set_num_threads(before); }
  int before;
};

TEST(TasksInOrder, EveryPartSeesTheTasksInOrder) {
  for (const int threads : {1, 2, 5}) {
    const Threads set(threads);
    for (const int64_t tasks : {0, 1, 7, 200}) {
      std::vector<std::vector<int64_t>> seen(kCommitParts);
      std::vector<char> ran(static_cast<size_t>(tasks));
      run_tasks_in_order(
          tasks,
          [&](int64_t i) {
            // The earlier ones of a few neighbours take longer.
            std::this_thread::sleep_for(std::chrono::microseconds(50 * (7 - i % 8)));
            ran[static_cast<size_t>(i)] = 1;
          },
          [&](int64_t i, int64_t part) {
            ASSERT_TRUE(ran[static_cast<size_t>(i)]);
            seen[static_cast<size_t>(part)].push_back(i);
          });
      for (const auto& part : seen) {
        ASSERT_EQ(part.size(), static_cast<size_t>(tasks));
        ASSERT_TRUE(std::is_sorted(part.begin(), part.end()));
      }
    }
  }
}

TEST(TasksInOrder, AFailureEndsAllThreads) {
  const Threads set(4);
  const auto fails_at = [](int64_t bad, bool in_commit) {
    run_tasks_in_order(
        100,
        [&](int64_t i) {
          if (i == bad && !in_commit) throw std::runtime_error("task");
        },
        [&](int64_t i, int64_t) {
          if (i == bad && in_commit) throw std::runtime_error("commit");
        });
  };
  for (const int64_t bad : {0, 50, 99}) {
    EXPECT_THROW(fails_at(bad, false), std::runtime_error);
    EXPECT_THROW(fails_at(bad, true), std::runtime_error);
  }
}

}  // namespace
}  // namespace sigma
