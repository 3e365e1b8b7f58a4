// The small classifier whose features Frechet distances here are measured on: `fd_fashion_cnn`
// (never called FID).
//
//   conv3x3 c-64, max-pool 2, conv3x3 64-128, max-pool 2, conv3x3 128-128 (ReLU each),
//   adaptive average pool 2x2, linear 512-128, ReLU: the feature;  linear 128-classes: the logits
//
// Input in [-1, 1].
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "sigma/io/safetensors.h"
#include "sigma/metrics/frechet.h"
#include "sigma/nn/linear.h"

namespace sigma {

class FeatureNet : public Module {
 public:
  FeatureNet(int64_t channels, int64_t num_classes);
  struct Result {
    torch::Tensor features;  // [B,128]
    torch::Tensor logits;    // [B,classes]
  };
  /// images [B,C,H,W] float in [-1,1], sides at least 8.
  Result forward(const torch::Tensor& images) const;
  /// Forward operations for an image of height x width.
  double flops(int64_t height, int64_t width) const;

 private:
  std::vector<torch::Tensor> kernels_;
  std::vector<torch::Tensor> biases_;
  std::shared_ptr<Linear> feature_;
  std::shared_ptr<Linear> logits_;
};

/// A trained feature net from assets/, with the statistics of its reference set.
struct FeatureExtractor {
  std::string name;    // "fd_fashion_cnn"
  std::string sha256;  // of the weights file
  std::shared_ptr<FeatureNet> net;
  FeatureStatistics reference;  // training images
  std::string reference_name;   // "fashion train"
  double floor = 0;             // distance of the test images to the reference
  double accuracy = 0;          // of the logits on the test images
};
/// Loads assets/NAME.safetensors. Errors: kUsage (no such asset), kData.
FeatureExtractor load_feature_extractor(const std::string& name, torch::Device device);

/// Features and logits of uint8 images [N,C,H,W], in batches.
FeatureNet::Result extract(const FeatureNet& net, const torch::Tensor& images,
                           torch::Device device);

}  // namespace sigma
