// Preconditioners: f_{s,t}(x_t) = c_skip(s,t) x_t + c_out(s,t) G(c_in(t) x_t, t, s) (IMM, arXiv
// 2503.07565, appendix C.5).
//
//   kind         c_skip                  c_out                         G's target
//   identity     s_s/s_t                 a_s - a_t s_s/s_t             x
//   simple_edm   (a_s a_t + s_s s_t)/n   -(a_s s_t - a_t s_s) sd/q     (a_t eps - s_t x)/(sd q)
//   euler_fm     1                       -(t - s) sd                   (eps - x)/sd  (ot_fm only)
//
// q = sqrt(n), n = a_t^2 + s_t^2, c_in = 1/(sd q), sd = sigma_data. With its target, f_{s,t}(x_t) =
// x_s on every path; f_{t,t} is the identity bit for bit. simple_edm at s = 0 is EDM's
// preconditioner with F = -G. Arguments go (x, t, s).
#pragma once

#include <string>

#include "sigma/generator/path.h"

namespace sigma {

class Preconditioner {
 public:
  /// kind: identity | simple_edm | euler_fm. Errors: kUsage (euler_fm on another path than ot_fm).
  Preconditioner(std::string kind, Path path);

  const Path& path() const { return path_; }
  const std::string& kind() const { return kind_; }
  torch::Tensor skip(const torch::Tensor& s, const torch::Tensor& t) const;
  torch::Tensor out(const torch::Tensor& s, const torch::Tensor& t) const;
  torch::Tensor in(const torch::Tensor& t) const;
  torch::Tensor target(const torch::Tensor& x, const torch::Tensor& eps,
                       const torch::Tensor& t) const;
  /// c_skip x_t + c_out G; x_t itself where s = t.
  torch::Tensor apply(const torch::Tensor& x_t, const torch::Tensor& G, const torch::Tensor& s,
                      const torch::Tensor& t) const;

 private:
  torch::Tensor norm2(const torch::Tensor& t) const;  // n
  std::string kind_;
  Path path_;
};

}  // namespace sigma
