// The network slot of a generator, and the diffusion transformer (DiT, arXiv 2212.09748) with a
// second time.
//
//   tokens = Linear(patches) + positions
//   c = t_embedder(t) + s_embedder(s or t - s) + y_embedder(label)
//   G = unpatchify(Linear(LN(trunk(tokens, c)) (1 + scale) + shift))
//   (shift, scale) = Linear(silu(c))
//   embedder(t) = Linear(silu(Linear([cos(v f) | sin(v f)])))
//   v = time_scale t,  f_i = exp(-ln(10000) i/128), i < 128, float64
//
// Input [B,C,H,W] or clips [B,C,F,H,W] (patches of p x p) or [B,L,C] (latent tokens); output of the
// same shape, float32.
// The last linear and all adaLN linears start at zero: G = 0 at step 0. The time MLPs and the label
// table start at N(0, 0.02^2) (`dit`), or so that labels and times have unit scale (`unit`: labels
// N(0,1), MLPs N(0, 2/fan_in)), which short trainings need. Conditioning stays in float32.
// Parameter names are DiT's, with `trunk.` before `blocks`.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "sigma/base/context.h"
#include "sigma/nn/linear.h"
#include "sigma/nn/output.h"
#include "sigma/trunk/trunk.h"

namespace sigma {

/// Labels int64 [B], or undefined. The null label of a network with K classes is K.
struct Condition {
  torch::Tensor labels;
};

class Network : public Module {
 public:
  /// x [B, ...] already scaled by c_in; t, s float64 [B], unscaled. -> raw G of x's shape.
  virtual Output forward(const torch::Tensor& x, const torch::Tensor& t, const torch::Tensor& s,
                         const Condition& condition, const Context& context) = 0;
  /// 0: unconditional.
  virtual int64_t num_classes() const = 0;
  /// Forward operations for one sample.
  virtual double flops() const = 0;
};

struct NetworkConfig {
  int64_t num_classes = 0;
  int64_t patch_size = 2;
  std::string second_time = "s";  // s | delta | none
  double time_scale = 1000;
  std::string embedding_init = "dit";  // dit | unit
  TrunkConfig trunk;
  void visit(ConfigVisitor& v);
};

class DiffusionTransformer : public Network {
 public:
  /// sample_shape: [C,H,W], [C,F,H,W] or [L,C]. Errors: kUsage (patch_size does not divide a side, ...).
  DiffusionTransformer(const NetworkConfig& config, const std::vector<int64_t>& sample_shape);
  Output forward(const torch::Tensor& x, const torch::Tensor& t, const torch::Tensor& s,
                 const Condition& condition, const Context& context) override;
  int64_t num_classes() const override { return config_.num_classes; }
  double flops() const override;

 private:
  torch::Tensor embed_time(const std::vector<std::shared_ptr<Linear>>& mlp,
                           const torch::Tensor& v) const;

  NetworkConfig config_;
  bool tokens_;  // [L,C] input
  int64_t channels_;
  TokenLayout layout_;
  std::shared_ptr<Linear> x_embedder_;
  std::vector<std::shared_ptr<Linear>> t_embedder_;
  std::vector<std::shared_ptr<Linear>> s_embedder_;
  torch::Tensor label_table_;  // [num_classes + 1, hidden]
  std::shared_ptr<Trunk> trunk_;
  std::shared_ptr<Linear> final_modulation_;
  std::shared_ptr<Linear> final_linear_;
};

}  // namespace sigma
