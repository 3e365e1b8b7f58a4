// Clips of clothes that move: a Fashion-MNIST image at half size flies over a black square and
// bounces off its sides. Clip i is made from image i when it is asked for; where it starts and how
// fast it flies depend on i alone.
#include <torch/types.h>

#include <algorithm>

#include "sigma/base/error.h"
#include "sigma/base/random.h"
#include "sigma/data/readers.h"

namespace sigma {
namespace {

constexpr uint64_t kSeed = 0;                 // of the motion: part of the data, not of a run
constexpr int64_t kFastest = 3;               // pixels a frame, on each axis
constexpr int64_t kSide = 28;                 // of a frame
constexpr int64_t kRoom = kSide - kSide / 2;  // places of the image on an axis: 0 .. kRoom

/// Place after `frame` steps of `speed` from `start`, reflected into [0, kRoom].
int64_t bounced(int64_t start, int64_t speed, int64_t frame) {
  const int64_t period = 2 * kRoom;
  const int64_t along = ((start + speed * frame) % period + period) % period;
  return std::min(along, period - along);
}

class MovingFashion : public Dataset {
 public:
  MovingFashion(std::unique_ptr<Dataset> images, const DataConfig& config)
      : images_(std::move(images)), pad_(config.pad), info_(images_->info()) {
    info_.kind = "moving_fashion";
    const int64_t side = kSide + 2 * pad_;
    info_.sample_shape = {1, config.frames, side, side};
    info_.description =
        describe("moving Fashion-MNIST", images_->size(), config.split, info_.sample_shape);
  }
  int64_t size() const override { return images_->size(); }
  const DatasetInfo& info() const override { return info_; }

  Sample get(int64_t index) const override {
    Sample sample = images_->get(index);
    const torch::Tensor half =
        torch::avg_pool2d(sample.data.to(torch::kFloat), 2).add_(0.5).to(torch::kUInt8).squeeze(0);
    torch::Tensor draws = torch::empty({4});
    fill_uniform_keyed(draws, kSeed, random_stream(Purpose::kAugment, 0),
                       static_cast<uint64_t>(index));
    // Whole numbers below n; a speed of 0 becomes the fastest.
    const auto below = [&](int64_t i, int64_t n) {
      const auto u = static_cast<double>(draws.data_ptr<float>()[i]);
      return std::min(static_cast<int64_t>(u * static_cast<double>(n)), n - 1);
    };
    const auto speed = [&](int64_t i) {
      const int64_t v = below(i, 2 * kFastest) - kFastest;
      return v == 0 ? kFastest : v;
    };
    const int64_t y = below(0, kRoom + 1), x = below(1, kRoom + 1);
    const int64_t dy = speed(2), dx = speed(3);
    const int64_t frames = info_.sample_shape[1];
    torch::Tensor clip = torch::zeros({1, frames, kSide, kSide}, torch::kUInt8);
    for (int64_t f = 0; f < frames; ++f)
      clip.select(1, f)
          .narrow(1, bounced(y, dy, f), kSide / 2)
          .narrow(2, bounced(x, dx, f), kSide / 2)
          .copy_(half);
    sample.data = pad_images(clip, pad_);
    return sample;
  }

 private:
  std::unique_ptr<Dataset> images_;
  int64_t pad_;
  DatasetInfo info_;
};

}  // namespace

std::unique_ptr<Dataset> open_moving_fashion(const DataConfig& config) {
  DataConfig images = config;
  images.kind = "fashion";
  images.pad = 0;
  return std::make_unique<MovingFashion>(open_fashion(images), config);
}

}  // namespace sigma
