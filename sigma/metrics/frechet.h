// Frechet distance between feature sets, and energy distance between sample sets.
//
//   FD = |mu1 - mu2|^2 + Tr(S1 + S2) - 2 sum sqrt(max(eig(S1^1/2 S2 S1^1/2), 0))
//   energy = 2 E|x-y| - E|x-x'| - E|y-y'|    U-statistic (x != x'), no 1/2 and no root
//
// Covariances are over N - 1, in float64. The energy distance of samples may be negative.
#pragma once

#include <torch/types.h>

namespace sigma {

struct FeatureStatistics {
  torch::Tensor mean;        // float64 [D]
  torch::Tensor covariance;  // float64 [D,D], over N - 1
  int64_t count = 0;
};

/// features [N,D], N >= 2. Errors: kUsage (N < 2), kNonFinite.
FeatureStatistics feature_statistics(const torch::Tensor& features);
double frechet_distance(const FeatureStatistics& a, const FeatureStatistics& b);
/// x [N,D], y [M,D], at least 2 rows each; O((N+M)^2) time, tiled memory.
double energy_distance(const torch::Tensor& x, const torch::Tensor& y);

}  // namespace sigma
