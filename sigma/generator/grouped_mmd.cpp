#include "sigma/generator/grouped_mmd.h"

#include <torch/types.h>

#include "sigma/base/error.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr int64_t kMaxGroup = 64;

}  // namespace

GroupedMmd grouped_mmd(const Tensor& y, const Tensor& z, const Tensor& kappa,
                       const std::string& kernel, double distance_floor) {
  SIGMA_CHECK(kUsage, y.dim() == 3 && y.sizes() == z.sizes() && y.numel() > 0,
              "grouped_mmd: expected y and z of one shape [G,M,D], not empty");
  SIGMA_CHECK(kUsage, kappa.dim() == 1 && kappa.size(0) == y.size(0),
              "grouped_mmd: expected a kappa for each of {} groups", y.size(0));
  SIGMA_CHECK(kUsage, y.size(1) <= kMaxGroup, "grouped_mmd: expected M of at most {}, got {}",
              kMaxGroup, y.size(1));
  SIGMA_CHECK(kUsage, kernel == "laplace" || kernel == "rbf",
              "grouped_mmd: expected laplace or rbf, got {}", kernel);
  const Tensor rate = kappa.to(torch::kDouble).view({-1, 1, 1});
  // k(p, q) - 1 for all pairs of a group: [G, M, M].
  const auto kernel_minus_1 = [&](const Tensor& p, const Tensor& q) {
    const Tensor square = (p.unsqueeze(2) - q.unsqueeze(1)).square().sum(-1).to(torch::kDouble);
    const Tensor floored = square.clamp_min(distance_floor * distance_floor);
    return torch::expm1(-rate * (kernel == "laplace" ? floored.sqrt() : floored));
  };
  const Tensor yy = kernel_minus_1(y, y).mean({1, 2});
  const Tensor zz = kernel_minus_1(z, z).mean({1, 2});
  const Tensor yz = kernel_minus_1(y, z).mean({1, 2});
  return {.mmd = yy + zz - 2 * yz,
          .yy_sim = yy.detach() + 1,
          .zz_sim = zz.detach() + 1,
          .yz_sim = yz.detach() + 1};
}

}  // namespace sigma
