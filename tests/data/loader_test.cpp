#include "sigma/data/loader.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include <atomic>
#include <numeric>

#include "sigma/base/error.h"
#include "sigma/base/random.h"
#include "sigma/base/sha256.h"

namespace sigma {
namespace {

TEST(Permutation, Golden) {
  using Order = std::vector<int64_t>;
  EXPECT_EQ(permutation(0, 0, 10), (Order{8, 6, 9, 7, 3, 0, 2, 1, 5, 4}));
  EXPECT_EQ(permutation(0, 1, 10), (Order{9, 7, 6, 5, 0, 8, 2, 3, 4, 1}));
  EXPECT_EQ(permutation(1, 0, 10), (Order{0, 3, 8, 7, 5, 9, 4, 1, 2, 6}));
  const Order large = permutation(0, 0, 60000);
  EXPECT_EQ(
      sha256_hex({reinterpret_cast<const char*>(large.data()), large.size() * sizeof(int64_t)}),
      "0cc532eb90b1555c1aeba880560cc7931ce682d3334391b32a301a7e46243c75");
}

// Sample i is filled with i and has label i % 3; index `broken` throws.
class Numbers : public Dataset {
 public:
  explicit Numbers(int64_t size, torch::ScalarType dtype = torch::kUInt8, int64_t broken = -1)
      : size_(size), dtype_(dtype), broken_(broken) {
    info_.description = "numbers";
  }
  int64_t size() const override { return size_; }
  const DatasetInfo& info() const override { return info_; }
  Sample get(int64_t index) const override {
    ++reads;
    SIGMA_CHECK(kData, index != broken_, "sample {} is broken", index);
    return {torch::full({2, 3}, index, dtype_), index % 3, std::to_string(index)};
  }
  mutable std::atomic<int64_t> reads = 0;

 private:
  int64_t size_;
  torch::ScalarType dtype_;
  int64_t broken_;
  DatasetInfo info_;
};

// The data set index at position k, from the definition.
int64_t index_at(uint64_t seed, int64_t size, int64_t k) {
  return permutation(seed, static_cast<uint64_t>(k / size), size)[static_cast<size_t>(k % size)];
}

void expect_batch(const RawBatch& batch, int64_t step, int64_t size, uint64_t seed,
                  int64_t batch_size) {
  ASSERT_EQ(batch.positions.numel(), batch_size);
  ASSERT_EQ(batch.data.sizes(), (std::vector<int64_t>{batch_size, 2, 3}));
  for (int64_t i = 0; i < batch_size; ++i) {
    const int64_t index = index_at(seed, size, (step - 1) * batch_size + i);
    EXPECT_EQ(batch.positions[i].item<int64_t>(), index) << "step " << step << " row " << i;
    EXPECT_EQ(batch.labels[i].item<int64_t>(), index % 3);
    EXPECT_TRUE(batch.data[i].eq(index).all().item<bool>());
  }
}

TEST(Loader, EqualForAnyThreadsAndFirstStep) {
  // 10 samples in batches of 4 cross the borders of epochs; 23 span several.
  for (const int64_t batch : {4, 10, 23}) {
    for (const int64_t threads : {0, 1, 4}) {
      for (const int64_t first : {1, 2, 6}) {
        const Numbers dataset(10);
        Loader loader(dataset, batch, 7, first, threads, 3);
        for (int64_t step = first; step < first + 6; ++step)
          expect_batch(loader.next(), step, 10, 7, batch);
      }
    }
  }
}

TEST(Loader, AnEpochHasEverySampleOnce) {
  const Numbers dataset(12);
  Loader loader(dataset, 4, 3, 1, 2, 2);
  std::vector<int64_t> seen;
  for (int i = 0; i < 3; ++i) {
    const torch::Tensor positions = loader.next().positions;
    seen.insert(seen.end(), positions.data_ptr<int64_t>(), positions.data_ptr<int64_t>() + 4);
  }
  std::sort(seen.begin(), seen.end());
  std::vector<int64_t> all(12);
  std::iota(all.begin(), all.end(), int64_t{0});
  EXPECT_EQ(seen, all);
}

TEST(Loader, StacksFloats) {
  const Numbers dataset(5, torch::kFloat);
  Loader loader(dataset, 2, 0, 1, 1, 1);
  const RawBatch batch = loader.next();
  EXPECT_EQ(batch.data.scalar_type(), torch::kFloat);
  expect_batch(batch, 1, 5, 0, 2);
}

TEST(Loader, ErrorsComeAtTheirStep) {
  const int64_t broken =
      index_at(0, 10, 2 * 2 + 1);  // in step 3 of batches of 2, and in no other of the first epoch
  for (const int64_t threads : {0, 1, 4}) {
    const Numbers dataset(10, torch::kUInt8, broken);
    Loader loader(dataset, 2, 0, 1, threads, 4);
    for (int64_t step = 1; step <= 5; ++step) {
      if (step != 3) {
        expect_batch(loader.next(), step, 10, 0, 2);
        continue;
      }
      try {
        loader.next();
        ADD_FAILURE() << "no error at step 3";
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kData);
        EXPECT_EQ(error.what(), fmt::format("sample {} is broken", broken));
      }
    }
  }
}

TEST(Loader, PrefetchIsBounded) {
  const Numbers dataset(200);
  {
    Loader loader(dataset, 5, 0, 1, 4, 3);
    loader.next();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  // One batch handed out and at most 3 ahead of it.
  EXPECT_LE(dataset.reads, 4 * 5);
  EXPECT_GE(dataset.reads, 5);
}

// One sample of another shape.
class Uneven : public Numbers {
 public:
  Uneven() : Numbers(4) {}
  Sample get(int64_t index) const override {
    Sample sample = Numbers::get(index);
    if (index == 2) sample.data = sample.data.slice(0, 0, 1);
    return sample;
  }
};

TEST(Loader, RefusesUnevenSamplesAndBadSettings) {
  const Uneven uneven;
  Loader loader(uneven, 4, 0, 1, 0, 1);
  EXPECT_THROW(loader.next(), Error);
  const Numbers empty(0);
  const Numbers some(3);
  EXPECT_THROW(Loader(empty, 1, 0, 1, 0, 1), Error);
  EXPECT_THROW(Loader(some, 0, 0, 1, 0, 1), Error);
  EXPECT_THROW(Loader(some, 1, 0, 0, 0, 1), Error);
}

}  // namespace
}  // namespace sigma
