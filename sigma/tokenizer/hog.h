// Histograms of oriented gradients: what a patch's edges look like, as a target of reconstruction.
//
//   gx = x * [[1,0,-1],[2,0,-2],[1,0,-1]],  gy = x * its transpose   (cross-correlation, one pixel
//                                                                    of reflected border)
//   m   = sqrt(gx^2 + gy^2) w         w: P x P Gaussian, std P/2, centred, sum 1, one a patch
//   bin = floor(atan2(gx, gy) / pi * bins) mod bins                  (a direction and its opposite
//                                                                    share a bin)
//   h   = sum of m by patch, channel, bin and cell: n x n cells a patch, n = min(cells, P),
//         row p of the patch in row floor(p n / P) of the cells
//   target = h / max(|h|_2 over bins, 1e-12)
//
// Dalal and Triggs 2005 in the form of MaskFeat (arXiv 2112.09133, section 4) and MAETok
// (continuous_tokenizer utils/hog.py, fixed to a grid of 16 x 16 there), for any P, channels and
// grid. The quotient comes before the product: atan2 = pi must give exactly `bins`, so bin 0.
// Directions that lie on a border of two bins (45 degrees, if 4 divides bins) go where rounding
// sends them. Not supported: clips.
#pragma once

#include <torch/types.h>

#include <cstdint>

namespace sigma {

/// images [B,I,H,W] -> [B, H/P W/P, I bins n n], features in the order (channel, bin, cell row,
/// cell column); float64 if the images are, else float32; no gradient. Errors: kUsage (P does not
/// divide a side, a side below 2).
torch::Tensor hog_targets(const torch::Tensor& images, int64_t patch, int64_t bins = 9,
                          int64_t cells = 2);

}  // namespace sigma
