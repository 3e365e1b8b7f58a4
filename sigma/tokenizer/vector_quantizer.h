// Vector quantisation: a latent token becomes the nearest of V codes (VQ-VAE, arXiv 1711.00937,
// section 3; unit codes: ViT-VQGAN, arXiv 2110.04627, section 3.2).
//
//   z = e, codes C [V,Z];  norm l2: z = e/|e| and the rows of C of unit length where they are used
//   index = argmin_j |z - C_j|^2, of equals the lowest j;  q = C_index
//   c = z + sg(q - z): the gradient of c goes to z as it is
//   losses   codebook_weight mean (q - sg z)^2 + commit mean (sg q - z)^2
//            + entropy (mean_n H(p_n) - H(mean_n p_n)), p_n = softmax_j(-|z_n - C_j|^2 / temperature)
//            (MAGVIT-v2, arXiv 2310.05737); the second H has log(p + 1e-5)
//
// Distances are computed in tiles; only the entropy loss holds all of [B L, V]. Code gradients are
// sums by code, in order, on the CPU and on the GPU (torch::embedding): the bits repeat.
//
// Usage counts the codes of the last `window` latent tokens; entries not yet written do not count.
//
//   usage = #{n_j > 0} / V;  perplexity = exp(-sum_j p_j ln p_j), p_j = n_j / sum n
//
// Restart (`threshold`; after Jukebox, arXiv 2005.00341, and CVQ, arXiv 2307.15139). Once a
// step, f_j the share of code j in the step:
//
//   p_j = .99 p_j + .01 f_j, from 1/V;  steps_j counts up
//   V p_j < restart_below and steps_j >= restart_after: C_j = a random e of the step, p_j = 1/V,
//   steps_j = 0
//
// As the selection bias of the experts, codes move with the first recorded pass of the next step, by
// the passes of the step before: how a batch is cut does not matter. The random e of code j is the
// token that comes next on a circle after a point u_j, all points uniform and keyed by sample and by
// code. All of it lies in buffers, so that a resumed run goes on with equal bits; what is counted
// are whole numbers, and stay so when a module is moved to float32 or float64.
//
// A pass counts and restarts where it trains, records and the codebook has gradients: a frozen
// codebook stays as it is, bit by bit. Not supported: several codebooks, moving-average codes,
// rotation gradients, several processes.
#pragma once

#include <torch/types.h>

#include <memory>

#include "sigma/tokenizer/bottleneck.h"

namespace sigma {

struct CodeStatistics {
  torch::Tensor usage, perplexity;  // float64 scalars; 0 and 1 without tokens
};
/// counts [V] whole numbers: tokens of every code, of a window or of a whole set.
CodeStatistics code_statistics(const torch::Tensor& counts);

class CodeUsage : public Module {
 public:
  CodeUsage(int64_t codes, int64_t window);
  /// indices int64 [n], in order.
  void record(const torch::Tensor& indices);
  /// [V]
  const torch::Tensor& counts() const { return counts_; }

 private:
  torch::Tensor ring_;      // int32 [window], -1 where not yet written
  torch::Tensor position_;  // int64, of the next entry
  torch::Tensor counts_;    // int64 [V]
};

class CodeRestart : public Module {
 public:
  explicit CodeRestart(const BottleneckConfig& config);
  /// To be called by every pass that counts, before it uses `codebook` [V,Z].
  void begin(torch::Tensor codebook, const Context& context);
  /// e [B,L,Z] and indices [B,L] of a pass.
  void record(const torch::Tensor& e, const torch::Tensor& indices, const Context& context);
  const torch::Tensor& restarted() const { return restarted_; }

 private:
  double below_;
  int64_t after_;
  torch::Tensor probability_;  // [V] p
  torch::Tensor steps_;        // int64 [V]
  // Of the step that is being recorded: tokens, and the nearest token on the circle and its way.
  torch::Tensor counts_;     // int64 [V]
  torch::Tensor candidate_;  // [V,Z]
  torch::Tensor distance_;   // float64 [V]
  torch::Tensor restarted_;  // bool [V]
  int64_t recorded_step_ = -1;
};

class VectorQuantizer : public Bottleneck {
 public:
  explicit VectorQuantizer(const BottleneckConfig& config);
  Coded forward(const torch::Tensor& e, const Context& context) override;
  int64_t in_channels() const override { return config_.dim; }
  torch::Tensor codes(const torch::Tensor& indices) const override;
  torch::Tensor restarted() const override;

 private:
  BottleneckConfig config_;
  torch::Tensor codebook_;  // [V,Z]
  std::shared_ptr<CodeUsage> usage_;
  std::shared_ptr<CodeRestart> restart_;  // none without restart
};

/// int64 [n]: for every row of z [n,Z] the nearest row of codes [V,Z], of equals the first. No
/// gradient.
torch::Tensor nearest_codes(const torch::Tensor& z, const torch::Tensor& codes);
/// mean_n H(p_n) - H(mean_n p_n), z [n,Z], codes [V,Z].
torch::Tensor code_entropy(const torch::Tensor& z, const torch::Tensor& codes, double temperature);

}  // namespace sigma
