// What stands between encoder and decoder: e [B,L,Zin], from a linear map, becomes latents c
// [B,L,Z].
//
//   ae   c = norm(e)
//   kl   e = [mu | lv], lv clamped to [-30,20];  c = mu + exp(lv/2) eps in training, mu in evaluation
//        loss: kl_weight times KL = (mu^2 + exp(lv) - 1 - lv)/2; `sum` over a sample, then the mean
//        over samples; or the `mean` over all elements (arXiv 1312.6114, appendix B)
//   vq   the nearest of V codes: vector_quantizer.h
//
//   norm l2      e / max(|e|, 1e-12)
//   norm layer   (e - mean) / (std + 1e-6) over Z, std with Z - 1 (Semanticist, arXiv 2503.08685)
//
// eps is keyed by context.samples: a sample's noise does not depend on the batch it is in.
// Everything is computed in at least float32, float64 stays. Not supported: softvq, fsq, a norm for
// kl, `layer` for vq.
#pragma once

#include <torch/types.h>

#include <memory>
#include <string>

#include "sigma/base/config.h"
#include "sigma/base/context.h"
#include "sigma/nn/module.h"
#include "sigma/nn/output.h"

namespace sigma {

struct BottleneckConfig {
  std::string kind = "ae";    // ae | kl | vq
  int64_t dim = 16;           // Z
  std::string norm = "none";  // none | l2 | layer
  // kl
  double kl_weight = 1e-6;
  std::string kl_reduction = "sum";  // sum | mean
  // vq
  int64_t codes = 1024;  // V
  double commit = 0.25;
  double codebook_weight = 1;
  double entropy = 0;
  double entropy_temperature = 0.01;
  std::string restart = "none";  // none | threshold
  double restart_below = 0.03;
  int64_t restart_after = 100;
  int64_t usage_window = 65536;
  void visit(ConfigVisitor& v);
};

/// What a bottleneck returns.
struct Coded {
  torch::Tensor latents;  // [B,L,Z], at least float32
  torch::Tensor indices;  // vq: int64 [B,L]; else undefined
  Losses losses;          // weighted; none under no_grad
  Statistics statistics;  // none unless the pass counts
};

class Bottleneck : public Module {
 public:
  /// e [B,L,in_channels()].
  virtual Coded forward(const torch::Tensor& e, const Context& context) = 0;
  /// Zin.
  virtual int64_t in_channels() const = 0;
  /// indices [..] -> latents [..,Z]. Errors: kUsage (a kind without codes).
  virtual torch::Tensor codes(const torch::Tensor& indices) const;
  /// bool [V]: codes that this step replaced, so that an optimizer can forget their moments;
  /// undefined where there are none.
  virtual torch::Tensor restarted() const { return {}; }
};

/// Errors: kUsage (a norm that the kind does not have; `layer` over one channel).
std::shared_ptr<Bottleneck> make_bottleneck(const BottleneckConfig& config);

/// e over its last axis; `norm` = none | l2 | layer.
torch::Tensor normalise_latents(const torch::Tensor& e, const std::string& norm);

/// The normal distributions of kl, [..,Z] each.
struct Gaussian {
  torch::Tensor mean, log_variance;
};
/// e [..,2Z].
Gaussian split_gaussian(const torch::Tensor& e);
/// mu + exp(lv/2) noise.
torch::Tensor sample_gaussian(const Gaussian& gaussian, const torch::Tensor& noise);
/// KL divergence from the standard normal distribution, element by element.
torch::Tensor gaussian_kl(const Gaussian& gaussian);

}  // namespace sigma
