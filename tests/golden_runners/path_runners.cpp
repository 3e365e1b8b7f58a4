// path, preconditioner, imm-times: float64 mathematics of times.
#include <fmt/format.h>
#include <torch/types.h>

#include "tests/generator/toy_network.h"
#include "tests/golden_runners/setup.h"

namespace sigma::golden {
namespace {

using torch::Tensor;

/// A few roundings, relative to the largest element.
constexpr double kBound = 1e-12;

/// alpha', sigma' of the specification's table.
std::pair<Tensor, Tensor> derivatives(const Path& path, const Tensor& t) {
  if (path.kind() == "ot_fm") return {-torch::ones_like(t), torch::ones_like(t)};
  const double angle = path.kind() == "vp_cosine" ? M_PI / 2 : 1;
  return {-angle * path.sigma(t), angle * path.alpha(t)};
}

}  // namespace

void run_path(const GoldenFile& file, Report& report) {
  for (const std::string& kind : file.prefixes("t")) {
    sub_case(report, [&] {
      const Path path = make_path(file.options(), kind);
      const auto name = [&](const char* tensor) { return kind + "." + tensor; };
      const Tensor t = file.get(name("t"));
      const auto check = [&](const char* tensor, const auto& compute) {
        if (file.has(name(tensor)))
          report.relative(name(tensor), compute(), file.get(name(tensor)), kBound);
      };
      const auto given = [&](const char* tensor) { return file.get(name(tensor)); };
      check("alpha", [&] { return path.alpha(t); });
      check("sigma", [&] { return path.sigma(t); });
      check("logsnr", [&] { return path.logsnr(t); });
      check("eta", [&] { return path.eta(t); });
      check("t_from_eta", [&] { return path.eta_inverse(given("eta")); });
      check("neg_logsnr_slope", [&] { return path.neg_logsnr_slope(t); });
      check("eta_max", [&] { return torch::full({1}, path.eta(path.t_max()), torch::kDouble); });
      check("sqrt_snr", [&] { return 1 / path.eta(t); });
      check("alpha_prime", [&] { return derivatives(path, t).first; });
      check("sigma_prime", [&] { return derivatives(path, t).second; });
      if (!file.has(name("x")) || !file.has(name("eps"))) return;
      const Tensor x = given("x");
      const Tensor eps = given("eps");
      check("x_t", [&] { return path.interpolate(x, eps, t); });
      check("velocity", [&] {
        const auto [a, b] = derivatives(path, t);
        return expand_times(a, x) * x + expand_times(b, x) * eps;
      });
      if (!file.has(name("s"))) return;
      check("ddim", [&] { return path.ddim(given("x_t"), x, given("s"), t); });
      check("interpolate_s", [&] { return path.interpolate(x, eps, given("s")); });
    });
  }
}

void run_preconditioner(const GoldenFile& file, Report& report) {
  const Json& options = file.options();
  const double time_scale = number(options, "time_scale", 1000);
  const bool delta = text(options, "second_time", "s") == "delta";
  for (const std::string& pair : file.prefixes("c_skip")) {
    sub_case(report, [&] {
      const size_t dot = pair.find('.');
      Json local = options;
      local["preconditioner"] = pair.substr(0, dot);
      local["path"] = pair.substr(dot + 1);
      const Preconditioner f = make_preconditioner(local);
      const auto name = [&](const std::string& tensor) { return pair + "." + tensor; };
      const Tensor t = file.get(name("t"));
      const Tensor s = file.get(name("s"));
      const auto check = [&](const std::string& tensor, const Tensor& actual) {
        if (file.has(name(tensor)))
          report.relative(name(tensor), actual, file.get(name(tensor)), kBound);
      };
      check("c_skip", f.skip(s, t));
      check("c_out", f.out(s, t));
      check("c_in", f.in(t));
      if (file.has(name("x_t")) && file.has(name("G"))) {
        const Tensor x_t = file.get(name("x_t"));
        check("f", f.apply(x_t, file.get(name("G")), s, t));
        ToyNetwork net;
        raw_output(net, f, x_t, t, s, {}, {});
        check("net_input", net.calls[0].x);
        check("net_t", time_scale * net.calls[0].t);
        check("net_s", time_scale * (delta ? net.calls[0].t - net.calls[0].s : net.calls[0].s));
      }
      Tensor keep = t > s;
      if (file.has(name("keep"))) {
        report.exact(name("keep"), keep.to(torch::kInt64), file.get(name("keep")));
        keep = file.get(name("keep")).to(torch::kBool);
      }
      const Tensor t_kept = t.masked_select(keep);
      // Imm refuses identity at t_min 0; t_min enters neither weight.
      if (number(local, "t_min", 0) == 0) local["t_min"] = 1e-3;
      const Preconditioner inner = make_preconditioner(local);
      check("w_tilde", Imm({}, inner).kappa(s.masked_select(keep), t_kept, 1));
      const auto pairs = options.find("a_b");
      for (size_t i = 0; pairs != options.end() && i < pairs->size(); ++i) {
        ImmConfig config;
        config.a = (*pairs)[i][0].get<double>();
        config.b = (*pairs)[i][1].get<double>();
        check(fmt::format("weight{}", i), Imm(config, inner).weight(t_kept));
      }
    });
  }
}

void run_imm_times(const GoldenFile& file, Report& report) {
  for (const std::string& m : file.prefixes("t")) {
    sub_case(report, [&] {
      if (!file.has(m + ".v1")) throw Skip{"time_distribution lognormal"};
      const Json options = file.options().value(m, Json::object());
      const ImmConfig config = make_imm_config(options);
      // No preconditioner enters the times; simple_edm takes every path.
      const Preconditioner f("simple_edm", make_path(options));
      const Imm imm(config, f);
      const auto [t, r, s] =
          imm.times(file.get(m + ".v1"), file.get(m + ".v2"), imm.k_at(1), config.min_tr_gap);
      report.relative(m + ".t", t, file.get(m + ".t"), kBound);
      report.relative(m + ".s", s, file.get(m + ".s"), kBound);
      report.relative(m + ".r", r, file.get(m + ".r"), kBound);
      if (options.contains("u")) {
        const Path& path = f.path();
        const double u = (path.eta(path.t_max()) - path.eta(path.t_min())) /
                         std::pow(2.0, static_cast<double>(config.k));
        report.relative(m + ".u", torch::full({}, u), torch::full({}, options["u"].get<double>()),
                        kBound);
      }
    });
  }
}

}  // namespace sigma::golden
