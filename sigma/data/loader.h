// Batches in a deterministic order, prefetched by threads.
//
// Position k (from 0) is epoch e = k div n, sample permutation(seed, e, n)[k mod n]: no sample is
// dropped, batches run through the borders of epochs. Step s >= 1 takes positions [(s-1) B, s B).
// The order of delivery does not depend on the number of threads.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "sigma/data/dataset.h"

namespace sigma {

struct RawBatch {
  torch::Tensor data;       // uint8 [B,C,Y,X] or float32 [B,L,Z]
  torch::Tensor labels;     // int64 [B], -1: none
  torch::Tensor positions;  // int64 [B]: data set indices
};

class Loader {
 public:
  /// Batches of `batch` from step `first_step` (>= 1) on. threads 0: made by the caller. Errors:
  /// kUsage (empty data set).
  Loader(const Dataset& dataset, int64_t batch, uint64_t seed, int64_t first_step, int64_t threads,
         int64_t prefetch);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;
  /// The next step's batch. An error of a worker is thrown here, at its step; the call after it
  /// goes on with the next step.
  RawBatch next();

 private:
  struct Slot {
    RawBatch batch;
    std::exception_ptr error;
  };
  RawBatch make(int64_t step);
  void work();
  std::shared_ptr<const std::vector<int64_t>> epoch_order(int64_t epoch);

  const Dataset& dataset_;
  const int64_t batch_;
  const uint64_t seed_;
  const int64_t prefetch_;
  int64_t next_step_;     // to hand out
  int64_t claimed_step_;  // next for a worker
  std::map<int64_t, Slot> ready_;
  bool stop_ = false;
  std::mutex mutex_;
  std::map<int64_t, std::shared_ptr<const std::vector<int64_t>>> orders_;  // by epoch
  std::mutex order_mutex_;
  std::condition_variable changed_;
  std::vector<std::thread> threads_;
};

}  // namespace sigma
