// Inductive moment matching (arXiv 2503.07565): one stage, one to a few steps.
//
//   x_t = interpolate(x, eps, t), x_r = interpolate(x, eps, r)    one (x, eps) for both
//   y = f_{s,t}(x_t)    with the student's labels
//   z = f_{s,r}(x_r)    with the current weights under no_grad, labels undropped
//   loss = mean_g w(t_g) grouped_mmd(y, z, kappa_g)    times are shared by groups of M samples
//   kappa = kernel_scale / (|c_out(s,t)| D)    (rbf: half of it)
//   w(t) = (c/2) s_t a_t^(a-1) / ((s_t^2 + e^-b a_t^2) n)    eq. 13, so written finite at t = 0
//   t = t_min + v1^p (T - t_min), s = t_min + v2 (t - t_min)    v uniform, p = time_power
//   r = max(s, eta^-1(eta(t) - (eta(T) - eta(t_min)) / 2^k))    at least min_tr_gap below t
//
// The target is the current network, not an average of its past (section 4.1; an EMA target loses
// in our tests too). D is the number of elements of a sample. Ours: time_power below 1 favours
// noise (1 in the paper), and k may grow over the first part of a training (k_start, k_ramp): large
// steps of induction first, small ones once the network follows. Costs two forwards, one backward.
#pragma once

#include "sigma/generator/objective.h"

namespace sigma {

struct ImmConfig {
  int64_t group_size = 4;
  int64_t k = 12;
  int64_t k_start = 0;  // 0: k from the first step
  double k_ramp = 0.7;
  double min_tr_gap = -1;    // -1: 1e-4 if the pass computes in 16 bits, else 0
  double min_ts_gap = 1e-6;  // 0 = the published code
  double time_power = 1;
  double a = 1;
  double b = 4;
  std::string kernel = "laplace";  // laplace | rbf
  double kernel_scale = 1;
  double label_dropout = 0.1;
  std::string target_dtype = "float32";  // float32 | compute
  void visit(ConfigVisitor& v);
};

class Imm : public Objective {
 public:
  Imm(const ImmConfig& config, Preconditioner preconditioner);
  Needs needs() const override;
  Draws draw(const GeneratorBatch& batch, int64_t null_label,
             const Context& context) const override;
  Output loss(Network& student, Network& target, const GeneratorBatch& batch, const Draws& draws,
              const Context& context) const override;
  torch::Tensor jump(Network& network, const torch::Tensor& x_t, const torch::Tensor& t,
                     const torch::Tensor& s, const Condition& condition,
                     const GuidanceConfig& guidance, const Context& context) const override;
  double passes_per_step() const override { return 4; }

  struct Times {
    torch::Tensor t, r, s;  // float64 [G]
  };
  /// k when a share `progress` of the training is done.
  double k_at(double progress) const;
  /// From uniform numbers v1, v2 [G] in (0, 1).
  Times times(const torch::Tensor& v1, const torch::Tensor& v2, double k, double min_tr_gap) const;
  /// r(t, s): how far the target looks back.
  torch::Tensor map_r(const torch::Tensor& t, const torch::Tensor& s, double k,
                      double min_tr_gap) const;
  /// w(t).
  torch::Tensor weight(const torch::Tensor& t) const;
  /// kappa of a pair (s, t) for samples of D elements.
  torch::Tensor kappa(const torch::Tensor& s, const torch::Tensor& t, int64_t D) const;

 private:
  double tr_gap(torch::ScalarType dtype) const;
  ImmConfig config_;
  Preconditioner f_;
};

}  // namespace sigma
