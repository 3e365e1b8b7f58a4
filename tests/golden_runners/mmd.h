// How far rounding may move a grouped MMD.
#pragma once

#include "tests/golden_runners/golden.h"

namespace sigma::golden {

/// The value cancels: 4e-13 absolute, and kappa times the rounding of the samples themselves.
torch::Tensor mmd_bound(const torch::Tensor& y, const torch::Tensor& z, const torch::Tensor& kappa);
/// Relative bound of a gradient: unit vectors of pairs at distance d turn by |y| eps / d.
double mmd_gradient_bound(const torch::Tensor& y, const torch::Tensor& z, double floor);

}  // namespace sigma::golden
