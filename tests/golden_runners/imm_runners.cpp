// imm-loss-*: the loss on given network outputs, end to end.
#include <torch/types.h>

#include "sigma/generator/grouped_mmd.h"
#include "tests/golden_runners/imm.h"
#include "tests/golden_runners/mmd.h"
#include "tests/golden_runners/setup.h"

namespace sigma::golden {

using torch::Tensor;

ImmParts imm_parts(const ImmConfig& config, const Preconditioner& f, const Tensor& x,
                   const Tensor& eps, const Tensor& t, const Tensor& r, const Tensor& s,
                   const Tensor& G_t, const Tensor& G_r) {
  const int64_t M = config.group_size;
  const int64_t D = x[0].numel();
  const auto each = [&](const Tensor& v) { return v.repeat_interleave(M); };
  ImmParts parts;
  parts.y = f.apply(f.path().interpolate(x, eps, each(t)), G_t, each(s), each(t))
                .detach()
                .requires_grad_();
  parts.z = f.apply(f.path().interpolate(x, eps, each(r)), G_r, each(s), each(r)).detach();
  const Imm imm(config, f);
  parts.kappa = imm.kappa(s, t, D);
  parts.weight = imm.weight(t);
  const GroupedMmd mmd = grouped_mmd(parts.y.reshape({-1, M, D}), parts.z.reshape({-1, M, D}),
                                     parts.kappa, config.kernel, 1e-4);
  parts.mmd = mmd.mmd.detach();
  parts.yy_sim = mmd.yy_sim;
  parts.zz_sim = mmd.zz_sim;
  parts.yz_sim = mmd.yz_sim;
  (parts.weight * mmd.mmd).mean().backward();
  parts.grad_y = parts.y.grad();
  return parts;
}

void check_imm_parts(const GoldenFile& file, const ImmConfig& config, const ImmParts& parts,
                     const Output& out, Report& report) {
  const int64_t M = config.group_size;
  const Tensor y = parts.y.detach().reshape({parts.kappa.size(0), M, -1});
  const Tensor z = parts.z.reshape(y.sizes());
  const Tensor mmd_error = mmd_bound(y, z, parts.kappa);
  const Tensor loss_error = parts.weight * mmd_error;
  const auto check = [&](const char* name, const auto& compare) {
    if (file.has(name)) compare(file.get(name));
  };
  check("kappa", [&](const Tensor& e) { report.relative("kappa", parts.kappa, e, 1e-12); });
  check("w_tilde", [&](const Tensor& e) {
    const auto D = static_cast<double>(y.size(2));
    report.relative("w_tilde", parts.kappa * D / config.kernel_scale, e, 1e-12);
  });
  check("weight", [&](const Tensor& e) { report.relative("weight", parts.weight, e, 1e-12); });
  check("y", [&](const Tensor& e) { report.relative("y", parts.y, e, 1e-12); });
  check("z", [&](const Tensor& e) { report.relative("z", parts.z, e, 1e-12); });
  check("mmd", [&](const Tensor& e) { report.absolute("mmd", parts.mmd, e, mmd_error); });
  for (const auto& [name, value] :
       {std::pair{"yy_sim", parts.yy_sim}, {"zz_sim", parts.zz_sim}, {"yz_sim", parts.yz_sim}}) {
    check(name, [&](const Tensor& e) { report.absolute(name, value, e, mmd_error); });
  }
  check("grad_y", [&](const Tensor& e) {
    report.relative("grad_y", parts.grad_y, e, mmd_gradient_bound(y, z, 1e-4));
  });
  check("per_group", [&](const Tensor& e) {
    report.absolute("per_group", out.value, e, loss_error + 1e-12 * e.abs());
  });
  check("loss", [&](const Tensor& e) {
    report.absolute("loss", out.losses.at("imm").reshape({1}), e.reshape({1}),
                    loss_error.mean().item<double>() + 1e-12 * e.abs().max().item<double>());
  });
}

namespace {

/// Returns a given tensor and keeps what it was asked.
class Given : public Network {
 public:
  Given(Tensor G, int64_t num_classes) : G_(std::move(G)), num_classes_(num_classes) {}
  Output forward(const Tensor& x, const Tensor& t, const Tensor& s, const Condition& condition,
                 const Context&) override {
    input = x;
    this->t = t;
    this->s = s;
    labels = condition.labels;
    return {.value = G_, .losses = {}, .statistics = {}};
  }
  int64_t num_classes() const override { return num_classes_; }
  double flops() const override { return 0; }

  Tensor input, t, s, labels;

 private:
  Tensor G_;
  int64_t num_classes_;
};

}  // namespace

void run_imm_loss(const GoldenFile& file, Report& report) {
  const Json& options = file.options();
  const ImmConfig config = make_imm_config(options);
  const Preconditioner f = make_preconditioner(options);
  const Imm imm(config, f);
  const int64_t M = config.group_size;

  const Tensor t = file.get("t");
  const Tensor r = file.get("r");
  const Tensor s = file.get("s");
  if (file.has("v1") && file.has("v2")) {
    const Imm::Times times =
        imm.times(file.get("v1"), file.get("v2"), imm.k_at(1), config.min_tr_gap);
    report.relative("t", times.t, t, 1e-12);
    report.relative("r", times.r, r, 1e-12);
    report.relative("s", times.s, s, 1e-12);
  }

  const int64_t num_classes = whole(options, "num_classes", 0);
  GeneratorBatch batch{file.get("x"), {}};
  Draws draws;
  draws.t = t.repeat_interleave(M);
  draws.r = r.repeat_interleave(M);
  draws.s = s.repeat_interleave(M);
  draws.eps = file.get("eps");
  if (file.has("labels")) {
    batch.labels = file.get("labels");
    draws.student_labels = file.has("labels_student") ? file.get("labels_student") : batch.labels;
    if (file.has("label_drop_draw") && file.has("labels_student")) {
      const Tensor drop = file.get("label_drop_draw") < number(options, "label_dropout", 0.1);
      report.exact("labels_student", draws.student_labels,
                   batch.labels.masked_fill(drop, num_classes));
    }
  }
  const Tensor G_t = file.get("G_t").requires_grad_();
  Given student(G_t, num_classes);
  Given target(file.get("G_r"), num_classes);
  const Output out = imm.loss(student, target, batch, draws, Context{});

  const double time_scale = number(options, "time_scale", 1000);
  const bool delta = text(options, "second_time", "s") == "delta";
  const auto check = [&](const char* name, const Tensor& actual) {
    if (file.has(name)) report.relative(name, actual, file.get(name), 1e-12);
  };
  check("net_input_t", student.input);
  check("net_input_r", target.input);
  check("net_t_t", time_scale * student.t);
  check("net_t_r", time_scale * target.t);
  check("net_s_t", time_scale * (delta ? student.t - student.s : student.s));
  check("net_s_r", time_scale * (delta ? target.t - target.s : target.s));
  if (file.has("labels_target"))
    report.exact("labels_target", target.labels, file.get("labels_target"));
  if (file.has("labels_student"))
    report.exact("student's labels", student.labels, file.get("labels_student"));

  const ImmParts parts =
      imm_parts(config, f, batch.data, draws.eps, t, r, s, G_t.detach(), file.get("G_r"));
  check_imm_parts(file, config, parts, out, report);
  if (file.has("grad_G_t")) {
    out.losses.at("imm").backward();
    const Tensor y = parts.y.detach().reshape({t.size(0), M, -1});
    report.relative("grad_G_t", G_t.grad(), file.get("grad_G_t"),
                    mmd_gradient_bound(y, parts.z.reshape(y.sizes()), 1e-4));
  }
}

}  // namespace sigma::golden
