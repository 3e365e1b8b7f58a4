// A generator ready to use: network, objective, and the way from its state back to images.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "sigma/generator/generator.h"
#include "sigma/tokenizer/tokenizer.h"

namespace sigma {

/// A finished tokenizer: configuration, averaged weights, and their hash.
struct LoadedTokenizer {
  std::filesystem::path folder;  // of config.toml and the weights
  std::string weights_sha256;
  std::vector<int64_t> image_shape;
  std::shared_ptr<Tokenizer> model;
};

/// Finds a tokenizer run by path or by name under runs/ and loads its averaged weights. Errors:
/// kUsage (no such run, not finished, not a tokenizer), kCheckpoint.
LoadedTokenizer load_tokenizer_run(const std::string& name, torch::Device device);
/// Loads the copy that a generator's run keeps in RUN/tokenizer.
LoadedTokenizer load_tokenizer_copy(const std::filesystem::path& folder, torch::Device device);
/// Copies configuration and weights of a tokenizer into `folder`.
void copy_tokenizer(const LoadedTokenizer& tokenizer, const std::filesystem::path& folder);

class GeneratorModel {
 public:
  GeneratorModel(const GeneratorConfig& config, const std::vector<int64_t>& image_shape,
                 std::optional<LoadedTokenizer> tokenizer, torch::Device device);

  DiffusionTransformer& network() { return *network_; }
  const Objective& objective() const { return *objective_; }
  const Path& path() const { return path_; }
  const GeneratorConfig& config() const { return config_; }
  const std::optional<LoadedTokenizer>& tokenizer() const { return tokenizer_; }
  /// [C,H,W] of pixels or [L,Z] of latents: what the network sees.
  const std::vector<int64_t>& sample_shape() const { return sample_shape_; }
  const std::vector<int64_t>& image_shape() const { return image_shape_; }

  /// uint8 images or float latents -> the network's data, standard deviation about sigma_data, on
  /// the device.
  torch::Tensor to_data(const torch::Tensor& raw) const;
  /// The network's data -> uint8 images [B,C,H,W] on the CPU.
  torch::Tensor to_images(const torch::Tensor& data, const Context& context) const;
  /// normalize = standardize: mean and deviation of images in [-1,1].
  void set_pixel_statistics(double mean, double std);

  /// Samples uint8 images for `indices` (image numbers) with labels int64 [B] or undefined.
  torch::Tensor sample_images(const SamplerConfig& sampler, uint64_t seed,
                              const torch::Tensor& indices, const torch::Tensor& labels,
                              torch::ScalarType dtype);

 private:
  GeneratorConfig config_;
  std::vector<int64_t> image_shape_;
  std::vector<int64_t> sample_shape_;
  std::optional<LoadedTokenizer> tokenizer_;
  torch::Device device_;
  Path path_;
  std::unique_ptr<Objective> objective_;
  std::shared_ptr<DiffusionTransformer> network_;
  torch::Tensor
      pixel_mean_;  // buffers of the network, float64 scalars, where normalize = standardize
  torch::Tensor pixel_std_;
};

}  // namespace sigma
