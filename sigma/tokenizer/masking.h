// Which patches an encoder does not see.
//
//   uniform            r = low + u (high - low)
//   truncated_normal   r = high + scale Phi^-1(a + u (1/2 - a)),  a = Phi((low - high) / scale):
//                      the lower half of a normal distribution at `high`, cut off at `low`
//   hidden patches     M = ceil(N r - 1e-9), at least 1 and at most N - 1: those with the M smallest
//                      keys, ties by index; a key is a random word of (sample, patch)
//   ramp               low and high move linearly to end_low and end_high over `ramp_steps` steps
//
// `replace` puts a mask token where a patch is hidden (MAETok, arXiv 2502.03444, section 3.2);
// `drop` leaves the hidden patches out of the sequence (MAE, arXiv 2111.06377, section 3), so all
// rows must hide equally many: one ratio a step. A sample's keys are its own, so its mask is the
// same at any batch size and on any device. A ratio of 0 still hides one patch: policy `none` hides
// nothing. Not supported: masks of blocks.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <string>

#include "sigma/base/config.h"
#include "sigma/base/context.h"

namespace sigma {

struct MaskConfig {
  std::string policy = "none";  // none | replace | drop
  double low = 0.4;
  double high = 0.6;
  std::string distribution = "uniform";  // uniform | truncated_normal
  double scale = 0.25;
  std::string per = "sample";  // sample | step
  double end_low = 0;
  double end_high = 0;
  int64_t ramp_steps = 0;  // 0: no ramp
  void visit(ConfigVisitor& v);
};

struct Mask {
  torch::Tensor hidden;   // [B,N] bool; undefined with policy none
  torch::Tensor visible;  // [B,N-M] int64, rising; undefined unless all rows have the same M
  /// Copied to a device that is not made to wait for it.
  Mask to(torch::Device device) const;
};

/// Errors: kUsage (low above high; drop with a ratio a sample).
void check_mask(const MaskConfig& config);
/// Masks of context.samples over N patches, on the CPU. Errors: kUsage (fewer than 2 patches).
Mask draw_mask(const MaskConfig& config, int64_t N, const Context& context);

/// r of uniform numbers u in (0, 1), any shape, float64; no ramp.
torch::Tensor mask_ratio(const MaskConfig& config, const torch::Tensor& u);
/// M of every ratio, int64; N of at least 2.
torch::Tensor hidden_count(const torch::Tensor& ratio, int64_t N);

}  // namespace sigma
