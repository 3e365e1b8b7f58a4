// Paths between data (t = 0) and noise: x_t = alpha(t) x + sigma(t) eps. Float64 throughout.
//
//   kind        alpha, sigma                  eta = sigma/alpha   eta^-1(e)        t_max
//   ot_fm       1 - t, t                      t/(1-t)             e/(1+e)          0.994
//   vp_cosine   cos(pi t/2), sin(pi t/2)      tan(pi t/2)         (2/pi) atan e    0.996
//   trig        cos t, sin t, t in [0,pi/2]   tan t               atan e           atan(160)
//   logsnr = 2 log(alpha/sigma) = -2 log eta
//
// eps ~ N(0, sigma_data^2 I). ddim is the deterministic move from t to s with known x (IMM, arXiv
// 2503.07565, eq. 11). Times are float64 tensors of any shape; data tensors [B,...] take times [B].
#pragma once

#include <torch/types.h>

#include <string>

#include "sigma/base/config.h"

namespace sigma {

struct PathConfig {
  std::string kind = "ot_fm";
  double sigma_data = 0.5;
  double t_min = 0;
  double t_max = 0;  // 0: the path's own (table above)
  void visit(ConfigVisitor& v);
};

class Path {
 public:
  /// Errors: kUsage (t_max outside (t_min, end of the range]).
  explicit Path(const PathConfig& config);

  double sigma_data() const { return sigma_data_; }
  double t_min() const { return t_min_; }
  double t_max() const { return t_max_; }
  double range_end() const { return range_end_; }
  const std::string& kind() const { return kind_; }

  torch::Tensor alpha(const torch::Tensor& t) const;
  torch::Tensor sigma(const torch::Tensor& t) const;
  torch::Tensor eta(const torch::Tensor& t) const;
  torch::Tensor eta_inverse(const torch::Tensor& e) const;
  double eta(double t) const;
  double eta_inverse(double e) const;
  torch::Tensor logsnr(const torch::Tensor& t) const;
  /// -d logsnr / dt = c / (alpha sigma).
  torch::Tensor neg_logsnr_slope(const torch::Tensor& t) const;
  /// c = -alpha sigma d logsnr/dt: 2, pi, 2.
  double slope_constant() const { return slope_constant_; }

  /// alpha(t) x + sigma(t) eps. Errors: kUsage naming a t outside the range.
  torch::Tensor interpolate(const torch::Tensor& x, const torch::Tensor& eps,
                            const torch::Tensor& t) const;
  /// (a_s - a_t s_s/s_t) x + (s_s/s_t) x_t, t > 0.
  torch::Tensor ddim(const torch::Tensor& x_t, const torch::Tensor& x, const torch::Tensor& s,
                     const torch::Tensor& t) const;
  void check_times(const torch::Tensor& t) const;

 private:
  std::string kind_;
  double sigma_data_;
  double range_end_;
  double t_min_;
  double t_max_;
  double angle_;  // alpha = cos(angle t) for the two trigonometric paths
  double slope_constant_;
};

/// [B] -> [B, 1, ...] with as many axes as `like`.
torch::Tensor expand_times(const torch::Tensor& t, const torch::Tensor& like);

}  // namespace sigma
