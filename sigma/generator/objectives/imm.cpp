#include "sigma/generator/objectives/imm.h"

#include <torch/types.h>

#include <algorithm>
#include <cmath>

#include "sigma/base/error.h"
#include "sigma/generator/grouped_mmd.h"

namespace sigma {
namespace {

using torch::Tensor;
using torch::indexing::Slice;

constexpr double kDistanceFloor = 1e-4;  // the published code clamps the square at 1e-8
constexpr double kHalfPrecisionGap = 1e-4;
constexpr int kTimeBins = 4;

}  // namespace

void ImmConfig::visit(ConfigVisitor& v) {
  v.field("group_size", group_size, in(1, 64),
          "M, samples that share their times; divides the micro-batch");
  v.field("k", k, in(1, 20), "the target looks 2^-k of the noise range back");
  v.field("k_start", k_start, in(0, 20), "k at the first step; 0 = k throughout");
  v.field("k_ramp", k_ramp, above(0, 1), "share of the training in which k grows from k_start");
  v.field("min_tr_gap", min_tr_gap, in(-1, 0.05),
          "t - r is at least this; -1 = 1e-4 in 16 bits, else 0");
  v.field("min_ts_gap", min_ts_gap, in(0, 0.1), "t - s is at least this");
  v.field("time_power", time_power, above(0, 4),
          "t is drawn as a uniform number to this power; below 1 favours noise");
  v.field("a", a, in(0, 4), "exponent of alpha in the weight: 1 favours one step, 2 many");
  v.field("b", b, in(-20, 20), "shift of the weight's sigmoid");
  v.choice("kernel", kernel, {"laplace", "rbf"}, "kernel of the moment matching");
  v.field("kernel_scale", kernel_scale, above(0, 1e3), "multiplies the kernel's rate");
  v.field("label_dropout", label_dropout, below(0, 1),
          "share of the student's labels replaced by the null label");
  v.choice("target_dtype", target_dtype, {"float32", "compute"}, "precision of the target pass");
}

Imm::Imm(const ImmConfig& config, Preconditioner preconditioner)
    : config_(config), f_(std::move(preconditioner)) {
  const Path& path = f_.path();
  SIGMA_CHECK(kUsage, path.t_max() < path.range_end(),
              "path.t_max: imm expects less than {}, got {}", path.range_end(), path.t_max());
  SIGMA_CHECK(kUsage, f_.kind() != "identity" || path.t_min() > 0,
              "path.t_min: imm with the identity preconditioner expects more than 0 (f_0 would "
              "ignore x_t)");
}

Needs Imm::needs() const { return {.group_size = config_.group_size, .second_time = true}; }

double Imm::tr_gap(torch::ScalarType dtype) const {
  if (config_.min_tr_gap >= 0) return config_.min_tr_gap;
  return dtype == torch::kBFloat16 || dtype == torch::kHalf ? kHalfPrecisionGap : 0;
}

double Imm::k_at(double progress) const {
  const auto last = static_cast<double>(config_.k);
  if (config_.k_start == 0) return last;
  const auto first = static_cast<double>(config_.k_start);
  return first + (last - first) * std::min(progress / config_.k_ramp, 1.0);
}

Tensor Imm::map_r(const Tensor& t, const Tensor& s, double k, double min_tr_gap) const {
  const Path& path = f_.path();
  const double eta_min = path.eta(path.t_min());
  const double u = (path.eta(path.t_max()) - eta_min) / std::exp2(k);
  Tensor r = path.eta_inverse((path.eta(t) - u).clamp_min(eta_min));
  if (min_tr_gap > 0) r = torch::minimum(r, (t - min_tr_gap).clamp_min(path.t_min()));
  return torch::maximum(r, s).clamp_min(path.t_min());
}

Imm::Times Imm::times(const Tensor& v1, const Tensor& v2, double k, double min_tr_gap) const {
  const double low = f_.path().t_min();
  const double d = config_.min_ts_gap;
  const Tensor t = low + d + v1.pow(config_.time_power) * (f_.path().t_max() - low - d);
  const Tensor s = low + v2 * (t - d - low);
  return {.t = t, .r = map_r(t, s, k, min_tr_gap), .s = s};
}

Tensor Imm::weight(const Tensor& t) const {
  const Path& path = f_.path();
  const Tensor alpha = path.alpha(t);
  const Tensor sigma = path.sigma(t);
  const Tensor n = alpha.square() + sigma.square();
  return path.slope_constant() / 2 * sigma * alpha.pow(config_.a - 1) /
         ((sigma.square() + std::exp(-config_.b) * alpha.square()) * n);
}

Tensor Imm::kappa(const Tensor& s, const Tensor& t, int64_t D) const {
  const double scale = config_.kernel_scale / (config_.kernel == "rbf" ? 2.0 : 1.0);
  return scale / (f_.out(s, t).abs() * static_cast<double>(D));
}

Draws Imm::draw(const GeneratorBatch& batch, int64_t null_label, const Context& context) const {
  const int64_t M = config_.group_size;
  const int64_t B = batch.data.size(0);
  SIGMA_CHECK(kUsage, B > 0 && B % M == 0,
              "imm: expected a batch divisible by group_size = {}, got {}", M, B);
  const Tensor groups = context.samples.index({Slice(0, torch::indexing::None, M)}).div(M, "floor");
  Tensor v = torch::empty({B / M, 2}, torch::kDouble);
  fill_uniform(v, context.rng, Purpose::kTimes, 0, groups);
  const Times times =
      this->times(v.select(1, 0), v.select(1, 1), k_at(context.progress), tr_gap(context.dtype));
  const auto spread = [&](const Tensor& x) {
    return x.repeat_interleave(M).to(batch.data.device());
  };
  return {.t = spread(times.t),
          .r = spread(times.r),
          .s = spread(times.s),
          .eps = draw_noise(batch.data, f_.path().sigma_data(), context),
          .student_labels = drop_labels(batch.labels, config_.label_dropout, null_label, context)};
}

Output Imm::loss(Network& student, Network& target, const GeneratorBatch& batch, const Draws& draws,
                 const Context& context) const {
  const int64_t M = config_.group_size;
  const int64_t D = batch.data[0].numel();
  const auto& [t, r, s, eps, student_labels] = draws;
  const auto each_group = [&](const Tensor& x) {
    return x.index({Slice(0, torch::indexing::None, M)});
  };

  const Tensor x_t = f_.path().interpolate(batch.data, eps, t);
  Output result = raw_output(student, f_, x_t, t, s, {student_labels}, context);
  const Tensor y = f_.apply(x_t, result.value, s, t);
  Tensor z;
  {
    const torch::NoGradGuard no_grad;
    Context target_context = context;
    target_context.record = false;
    if (config_.target_dtype == "float32") target_context.dtype = torch::kFloat;
    const Tensor x_r = f_.path().interpolate(batch.data, eps, r);
    z = f_.apply(x_r, raw_output(target, f_, x_r, r, s, {batch.labels}, target_context).value, s,
                 r);
  }
  const Tensor t_group = each_group(t);
  const Tensor s_group = each_group(s);
  const GroupedMmd mmd = grouped_mmd(y.reshape({-1, M, D}), z.reshape({-1, M, D}),
                                     kappa(s_group, t_group, D), config_.kernel, kDistanceFloor);
  const Tensor per_group = weight(t_group) * mmd.mmd;
  result.value = per_group;
  result.losses["imm"] = per_group.mean();
  if (context.record) {
    const Tensor r_group = each_group(r);
    result.statistics["imm.yy_sim"] = mmd.yy_sim.mean();
    result.statistics["imm.zz_sim"] = mmd.zz_sim.mean();
    result.statistics["imm.yz_sim"] = mmd.yz_sim.mean();
    result.statistics["imm.t_minus_r"] = (t_group - r_group).mean();
    result.statistics["imm.share_r_is_s"] = (r_group == s_group).to(torch::kDouble).mean();
    const Tensor bin =
        (t_group / f_.path().t_max() * kTimeBins).to(torch::kInt64).clamp(0, kTimeBins - 1);
    for (int i = 0; i < kTimeBins; ++i) {
      const Tensor inside = (bin == i).to(torch::kDouble);
      result.statistics[fmt::format("imm.loss_t{}", i)] =
          (per_group.detach() * inside).sum() / inside.sum().clamp_min(1);
    }
  }
  return result;
}

Tensor Imm::jump(Network& network, const Tensor& x_t, const Tensor& t, const Tensor& s,
                 const Condition& condition, const GuidanceConfig& guidance,
                 const Context& context) const {
  return f_.apply(x_t, guided_output(network, f_, x_t, t, s, condition, guidance, context), s, t);
}

}  // namespace sigma
