#include "sigma/generator/path.h"

#include <torch/types.h>

#include <cmath>
#include <numbers>

#include "sigma/base/error.h"

namespace sigma {

using torch::Tensor;

void PathConfig::visit(ConfigVisitor& v) {
  v.choice("kind", kind, {"ot_fm", "vp_cosine", "trig"}, "path from data to noise");
  v.field("sigma_data", sigma_data, above(0, 10),
          "standard deviation of the data, and of the noise");
  v.field("t_min", t_min, in(0, 0.1),
          "smallest time in training and sampling: 0.006 for pixels, 0 for latents");
  v.field("t_max", t_max, in(0, std::numbers::pi / 2), "largest time; 0 = the path's own");
}

Path::Path(const PathConfig& config)
    : kind_(config.kind),
      sigma_data_(config.sigma_data),
      range_end_(1),
      t_min_(config.t_min),
      t_max_(config.t_max) {
  double own = 0;
  if (kind_ == "ot_fm") {
    own = 0.994;
    angle_ = 0;
    slope_constant_ = 2;
  } else if (kind_ == "vp_cosine") {
    own = 0.996;
    angle_ = std::numbers::pi / 2;
    slope_constant_ = std::numbers::pi;
  } else {
    SIGMA_CHECK(kUsage, kind_ == "trig", "path.kind: expected ot_fm, vp_cosine or trig, got {}",
                kind_);
    own = std::atan(160.0);
    angle_ = 1;
    slope_constant_ = 2;
    range_end_ = std::numbers::pi / 2;
  }
  if (t_max_ == 0) t_max_ = own;
  SIGMA_CHECK(kUsage, t_max_ > t_min_ && t_max_ <= range_end_,
              "path.t_max: expected in ({}, {}], got {}", t_min_, range_end_, t_max_);
}

Tensor Path::alpha(const Tensor& t) const { return angle_ == 0 ? 1 - t : torch::cos(t * angle_); }
Tensor Path::sigma(const Tensor& t) const { return angle_ == 0 ? t : torch::sin(t * angle_); }
Tensor Path::eta(const Tensor& t) const {
  return angle_ == 0 ? t / (1 - t) : torch::tan(t * angle_);
}
Tensor Path::eta_inverse(const Tensor& e) const {
  return angle_ == 0 ? e / (1 + e) : torch::atan(e) / angle_;
}
double Path::eta(double t) const { return angle_ == 0 ? t / (1 - t) : std::tan(t * angle_); }
double Path::eta_inverse(double e) const {
  return angle_ == 0 ? e / (1 + e) : std::atan(e) / angle_;
}

Tensor Path::logsnr(const Tensor& t) const {
  if (angle_ == 0) return 2 * (torch::log1p(-t) - torch::log(t));
  return -2 * torch::log(torch::tan(t * angle_));
}

Tensor Path::neg_logsnr_slope(const Tensor& t) const {
  return slope_constant_ / (alpha(t) * sigma(t));
}

void Path::check_times(const Tensor& t) const {
  if (t.numel() == 0) return;
  const Tensor host = t.detach().to(torch::kCPU);
  const double low = host.min().item<double>();
  const double high = host.max().item<double>();
  SIGMA_CHECK(kUsage, low >= 0, "time: expected in [0, {}], got {}", range_end_, low);
  SIGMA_CHECK(kUsage, high <= range_end_, "time: expected in [0, {}], got {}", range_end_, high);
}

Tensor expand_times(const Tensor& t, const Tensor& like) {
  std::vector<int64_t> shape(static_cast<size_t>(like.dim()), 1);
  shape[0] = t.size(0);
  return t.view(shape);
}

Tensor Path::interpolate(const Tensor& x, const Tensor& eps, const Tensor& t) const {
  if (t.is_cpu()) check_times(t);
  return expand_times(alpha(t), x) * x + expand_times(sigma(t), x) * eps;
}

Tensor Path::ddim(const Tensor& x_t, const Tensor& x, const Tensor& s, const Tensor& t) const {
  const Tensor ratio = sigma(s) / sigma(t);
  return expand_times(alpha(s) - alpha(t) * ratio, x) * x + expand_times(ratio, x) * x_t;
}

}  // namespace sigma
