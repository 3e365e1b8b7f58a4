// hog-*, mask-ratio-truncnorm: the parts of tokenizers that have no weights.
#include <torch/types.h>

#include "sigma/tokenizer/hog.h"
#include "sigma/tokenizer/masking.h"
#include "tests/golden_runners/golden.h"

namespace sigma::golden {

using torch::Tensor;

// In float64 and in the float32 of training: no pixel of these images is so near a border of two
// bins that float32 puts it on the other side.
void run_hog(const GoldenFile& file, Report& report) {
  const Json& options = file.options();
  const Tensor images = file.has("input.images")
                            ? file.get("input.images")
                            : file.get("input.images_u8").to(torch::kDouble) / 64 - 1;
  const Tensor expected = file.get("output.target");
  const double bound = file.is_float32("output.target") ? kEps32 : 1e-12;
  for (const auto dtype : {torch::kDouble, torch::kFloat}) {
    const Tensor target = hog_targets(images.to(dtype), whole(options, "patch", 0),
                                      whole(options, "bins", 9), whole(options, "cells", 2));
    const bool wide = dtype == torch::kDouble;
    report.relative(wide ? "float64" : "float32", target.to(torch::kDouble), expected,
                    wide ? bound : 16 * kEps32);
  }
}

void run_mask_ratio(const GoldenFile& file, Report& report) {
  const Json& options = file.options().at("mask");
  const MaskConfig config{.low = number(options, "low", 0.4),
                          .high = number(options, "high", 0.6),
                          .distribution = text(options, "distribution", ""),
                          .scale = number(options, "scale", 0.25)};
  const Tensor ratio = mask_ratio(config, file.get("input.u"));
  report.relative("ratio", ratio, file.get("output.ratio"), 1e-14);
  const Tensor tokens = file.get("input.tokens");
  for (int64_t i = 0; i < tokens.size(0); ++i)
    report.exact("hidden_count", hidden_count(ratio, tokens[i].item<int64_t>()),
                 file.get("output.hidden_count").select(1, i));
}

}  // namespace sigma::golden
