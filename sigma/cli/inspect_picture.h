// What the pictures of `sigma inspect` share: images of a run's data under the noise of its path,
// seen once by its network, patches drawn over an image, and the PNG file.
//
// Not supported: generators of latents, whose tokens have no places in the image.
#pragma once

#include <torch/types.h>

#include <memory>
#include <string>
#include <vector>

#include "sigma/base/config.h"
#include "sigma/cli/cli.h"
#include "sigma/data/dataset.h"
#include "sigma/io/images.h"
#include "sigma/nn/token_layout.h"
#include "sigma/train/load_generator.h"

namespace sigma {

/// float [3,Y,X] in [0,1] -> pixels.
Image picture(const torch::Tensor& rgb);

/// Errors: kUsage (a name that does not end in .png; a file that exists, without -f).
void check_picture_name(const std::string& out, const GlobalOptions& global);
/// The PNG, with `provenance` inside. Errors: kIo.
void write_picture(const std::string& out, const Image& image, const Json& provenance);

/// A grid of patches over a sample, uint8 [C,Y,X] or [C,F,Y,X]: frames side by side, each enlarged
/// a whole number of times to about `frame_width` pixels.
class PatchView {
 public:
  PatchView(const torch::Tensor& sample, int64_t patch, int64_t frame_width);
  const Grid& grid() const { return grid_; }
  /// The sample, float [3,Y,X] in [0,1] of the picture's pixels, as in all of the below.
  const torch::Tensor& sample() const { return sample_; }
  /// A value on every pixel of its patch: [N] -> [1,Y,X].
  torch::Tensor over_pixels(const torch::Tensor& tokens) const;
  /// The sample, darkened where light [N] is below 1, and tinted where it is above 0.
  torch::Tensor lit(const torch::Tensor& light) const;
  /// Draws a red frame around a patch.
  void outline(torch::Tensor& rgb, int64_t token) const;

 private:
  torch::Tensor spread(const torch::Tensor& clip) const;

  Grid grid_;
  int64_t patch_;
  int64_t zoom_;
  torch::Tensor sample_;
};

/// Images of a data set as a generator's network sees them.
class NoisyImages {
 public:
  /// Errors: kUsage (a generator of latents), kData.
  NoisyImages(const LoadedGenerator& generator, const DataConfig& data);
  const Dataset& dataset() const { return *dataset_; }
  /// Errors: kUsage naming the flag and the bounds.
  void check_image(int64_t image) const;
  void check_time(double time) const;
  /// x_t, double [B, ...]. The noise of an image is that of its number, the same at all times.
  torch::Tensor noised(const std::vector<int64_t>& images, double time) const;
  /// One pass of the network from there to the path's t_min, with the images' labels; its layers
  /// keep what they did.
  void pass(const std::vector<int64_t>& images, double time) const;

 private:
  const LoadedGenerator& generator_;
  std::unique_ptr<Dataset> dataset_;
};

}  // namespace sigma
