#include "sigma/data/loader.h"

#include <torch/types.h>

#include <cstring>

#include "sigma/base/error.h"
#include "sigma/base/random.h"

namespace sigma {
namespace {

constexpr size_t kKeptEpochs =
    4;  // orders in memory; workers are rarely more than one border apart

void put(const torch::Tensor& batch, int64_t row, const Sample& sample) {
  const torch::Tensor& data = sample.data;
  SIGMA_CHECK(kData,
              data.scalar_type() == batch.scalar_type() && data.sizes() == batch.sizes().slice(1),
              "sample: expected {} [{}], got {} [{}] ({})", torch::toString(batch.scalar_type()),
              fmt::join(batch.sizes().slice(1), ","), torch::toString(data.scalar_type()),
              fmt::join(data.sizes(), ","), sample.id);
  const torch::Tensor packed = data.contiguous();
  const size_t bytes = packed.nbytes();
  std::memcpy(static_cast<char*>(batch.data_ptr()) + static_cast<size_t>(row) * bytes,
              packed.data_ptr(), bytes);
}

}  // namespace

Loader::Loader(const Dataset& dataset, int64_t batch, uint64_t seed, int64_t first_step,
               int64_t threads, int64_t prefetch)
    : dataset_(dataset),
      batch_(batch),
      seed_(seed),
      prefetch_(prefetch),
      next_step_(first_step),
      claimed_step_(first_step) {
  SIGMA_CHECK(kUsage, dataset.size() >= 1, "data set: expected at least one sample, got none ({})",
              dataset.info().description);
  SIGMA_CHECK(kUsage, batch >= 1 && first_step >= 1 && threads >= 0 && prefetch >= 1,
              "loader: expected batch, first step, prefetch of at least 1 and threads of at least "
              "0, got {}, {}, {}, {}",
              batch, first_step, prefetch, threads);
  for (int64_t i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
}

Loader::~Loader() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

RawBatch Loader::next() {
  if (threads_.empty()) return make(next_step_++);
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return ready_.contains(next_step_); });
  Slot slot = std::move(ready_.extract(next_step_).mapped());
  ++next_step_;
  lock.unlock();
  changed_.notify_all();
  if (slot.error) std::rethrow_exception(slot.error);
  return std::move(slot.batch);
}

void Loader::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stop_ || claimed_step_ < next_step_ + prefetch_; });
    if (stop_) return;
    const int64_t step = claimed_step_++;
    lock.unlock();
    Slot slot;
    try {
      slot.batch = make(step);
    } catch (...) {
      slot.error = std::current_exception();
    }
    lock.lock();
    ready_.emplace(step, std::move(slot));
    changed_.notify_all();
  }
}

RawBatch Loader::make(int64_t step) {
  const int64_t size = dataset_.size();
  const auto integers = torch::TensorOptions().dtype(torch::kInt64);
  RawBatch out{.data = {},
               .labels = torch::empty({batch_}, integers),
               .positions = torch::empty({batch_}, integers)};
  std::shared_ptr<const std::vector<int64_t>> order;
  int64_t order_epoch = -1;
  for (int64_t i = 0; i < batch_; ++i) {
    const int64_t position = (step - 1) * batch_ + i;
    if (position / size != order_epoch) {
      order_epoch = position / size;
      order = epoch_order(order_epoch);
    }
    const int64_t index = (*order)[static_cast<size_t>(position % size)];
    const Sample sample = dataset_.get(index);
    if (i == 0) {
      std::vector<int64_t> shape = sample.data.sizes().vec();
      shape.insert(shape.begin(), batch_);
      out.data = torch::empty(shape, sample.data.options());
    }
    put(out.data, i, sample);
    out.labels.data_ptr<int64_t>()[i] = sample.label;
    out.positions.data_ptr<int64_t>()[i] = index;
  }
  return out;
}

std::shared_ptr<const std::vector<int64_t>> Loader::epoch_order(int64_t epoch) {
  // Held while an order is made: the others need the same one.
  const std::lock_guard lock(order_mutex_);
  auto& order = orders_[epoch];
  if (!order) {
    order = std::make_shared<const std::vector<int64_t>>(
        permutation(seed_, static_cast<uint64_t>(epoch), dataset_.size()));
  }
  const auto result = order;
  while (orders_.size() > kKeptEpochs) orders_.erase(orders_.begin());
  return result;
}

}  // namespace sigma
