#include "tests/golden_runners/setup.h"

namespace sigma::golden {

Path make_path(const Json& options, const std::string& kind) {
  if (kind != "ot_fm" && kind != "vp_cosine" && kind != "trig") throw Skip{"path " + kind};
  PathConfig config;
  config.kind = kind;
  config.sigma_data = number(options, "sigma_data", 0.5);
  config.t_min = number(options, "t_min", 0);
  const auto t_max = options.find("t_max");
  if (t_max != options.end()) {
    config.t_max = t_max->is_object() ? number(*t_max, kind, 0) : number(options, "t_max", 0);
  }
  return Path(config);
}

Path make_path(const Json& options) { return make_path(options, text(options, "path", "ot_fm")); }

Preconditioner make_preconditioner(const Json& options) {
  require(options, "preconditioner", {"identity", "simple_edm", "euler_fm"});
  return Preconditioner(text(options, "preconditioner", "euler_fm"), make_path(options));
}

ImmConfig make_imm_config(const Json& options) {
  require(options, "mapping", {"eta"});
  require(options, "kernel", {"laplace", "rbf"});
  require(options, "distance_floor", {1e-4});
  require(options, "keep_diagonals", {true});
  require(options, "loss_scale", {1});
  require(options, "target_labels", {"undropped"});
  require(options, "target", {"current"});
  require(options, "weight", {"elbo"});
  require(options, "stratified", {false});
  require(options, "time_distribution", {"uniform"});
  require(options, "math_dtype", {"float64"});
  require(options, "dropout", {0});
  if (text(options, "preconditioner", "") == "identity" && number(options, "t_min", 0) <= 0)
    throw Skip{"identity at t_min 0"};
  ImmConfig config;
  config.group_size = whole(options, "group_size", 4);
  config.k = whole(options, "k", 12);
  config.min_tr_gap = number(options, "min_tr_gap", 0);
  config.min_ts_gap = number(options, "min_ts_gap", 0);
  config.a = number(options, "a", 1);
  config.b = number(options, "b", 4);
  config.kernel = text(options, "kernel", "laplace");
  config.kernel_scale = number(options, "kernel_scale", 1);
  return config;
}

}  // namespace sigma::golden
