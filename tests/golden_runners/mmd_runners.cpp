// grouped-mmd, grouped-mmd-variants: values, similarities and gradients, in float64 and on the same
// inputs in float32.
#include <torch/types.h>

#include "sigma/generator/grouped_mmd.h"
#include "tests/golden_runners/mmd.h"

namespace sigma::golden {

using torch::Tensor;

Tensor mmd_bound(const Tensor& y, const Tensor& z, const Tensor& kappa) {
  const Tensor norm = torch::maximum(y.norm(2, -1).amax(1), z.norm(2, -1).amax(1));
  return 4e-13 + 16 * kEps64 * kappa * norm;
}

double mmd_gradient_bound(const Tensor& y, const Tensor& z, double floor) {
  const Tensor both = torch::cat({y, z}, 1);
  Tensor d = (both.unsqueeze(2) - both.unsqueeze(1)).norm(2, -1);
  d = torch::where(d > floor, d, torch::full_like(d, 1e300));
  const double norm = both.norm(2, -1).max().item<double>();
  return 1e-12 + 8 * kEps64 * norm / d.min().item<double>();
}

namespace {

struct Result {
  GroupedMmd out;
  Tensor grad_y;
};

Result run(const Tensor& y_in, const Tensor& z, const Tensor& kappa, const Tensor& upstream,
           const std::string& kernel, double floor) {
  const Tensor y = y_in.detach().clone().requires_grad_();
  Result result{grouped_mmd(y, z, kappa, kernel, floor), {}};
  (result.out.mmd * upstream).sum().backward();
  result.grad_y = y.grad();
  return result;
}

/// objectives.md section 6 for float32 inputs: |m error| <= 4 eps max(kappa d), per row |grad
/// error| <= 4 eps (2 kappa/M^2)(2M-1).
void check_float32(const std::string& c, const Result& narrow, const Tensor& mmd,
                   const Tensor& grad, const Tensor& y, const Tensor& z, const Tensor& kappa,
                   const Tensor& upstream, Report& report) {
  const auto M = static_cast<double>(y.size(1));
  const Tensor both = torch::cat({y, z}, 1);
  const Tensor d = (both.unsqueeze(2) - both.unsqueeze(1)).norm(2, -1).amax({1, 2});
  report.absolute(c + ".mmd float32", narrow.out.mmd, mmd, 4 * kEps32 * kappa * d + 4e-13);
  const Tensor rows = (narrow.grad_y.to(torch::kDouble) - grad).norm(2, -1);
  const Tensor bound = 4 * kEps32 * 2 * kappa * upstream.abs() / (M * M) * (2 * M - 1);
  report.absolute(c + ".grad_y float32", rows, torch::zeros_like(rows),
                  bound.unsqueeze(1).expand(rows.sizes()));
}

}  // namespace

void run_grouped_mmd(const GoldenFile& file, Report& report) {
  for (const std::string& c : file.prefixes("y")) {
    sub_case(report, [&] {
      const Json options = file.options().value(c, Json::object());
      require(options, "kernel", {"laplace", "rbf"});
      require(options, "keep_diagonals", {true});
      const std::string kernel = text(options, "kernel", "laplace");
      const double floor = number(options, "distance_floor", 1e-4);
      const Tensor y = file.get(c + ".y");
      const Tensor z = file.get(c + ".z");
      const Tensor kappa = file.get(c + ".kappa");
      const Tensor mmd = file.get(c + ".mmd");
      const Tensor upstream =
          file.has(c + ".grad_mmd") ? file.get(c + ".grad_mmd") : torch::ones_like(mmd);

      const Result result = run(y, z, kappa, upstream, kernel, floor);
      const double gradient_bound = mmd_gradient_bound(y, z, floor);
      report.absolute(c + ".mmd", result.out.mmd, mmd, mmd_bound(y, z, kappa));
      if (file.has(c + ".grad_y"))
        report.relative(c + ".grad_y", result.grad_y, file.get(c + ".grad_y"), gradient_bound);
      // m is symmetric: z's gradient is y's after swapping.
      if (file.has(c + ".grad_z")) {
        report.relative(c + ".grad_z", run(z, y, kappa, upstream, kernel, floor).grad_y,
                        file.get(c + ".grad_z"), gradient_bound);
      }
      for (const auto& [name, value] : {std::pair{".yy_sim", result.out.yy_sim},
                                        {".zz_sim", result.out.zz_sim},
                                        {".yz_sim", result.out.yz_sim}}) {
        if (file.has(c + name)) report.absolute(c + name, value, file.get(c + name), 1e-12);
      }
      if (kernel == "laplace" && file.is_float32(c + ".y") && file.is_float32(c + ".z")) {
        const Result narrow =
            run(file.load(c + ".y"), file.load(c + ".z"), kappa, upstream, kernel, floor);
        check_float32(c, narrow, mmd, result.grad_y, y, z, kappa, upstream, report);
      }
    });
  }
}

}  // namespace sigma::golden
