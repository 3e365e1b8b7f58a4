// Golden files and what a runner says about one.
//
// A runner reads inputs and options from a file, runs the library, and compares every stored result
// within a bound. Options that the library does not have end the file or a sub-case with Skip;
// everything else that goes wrong is a failure.
#pragma once

#include <torch/types.h>

#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "sigma/base/config.h"
#include "sigma/io/safetensors.h"

namespace sigma::golden {

/// An option that is not built.
struct Skip {
  std::string option;
};

/// Where the library runs: SIGMA_GOLDEN_DEVICE, by default the CPU. Comparisons are on the CPU.
torch::Device device();

class GoldenFile {
 public:
  explicit GoldenFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_.path(); }
  bool has(const std::string& name) const { return file_.contains(name); }
  /// As stored, on device().
  torch::Tensor load(const std::string& name) const { return file_.load(name).to(device()); }
  /// Floating tensors as float64, others as int64.
  torch::Tensor get(const std::string& name) const;
  bool is_float32(const std::string& name) const;
  std::vector<std::string> names() const;
  /// The distinct first parts of all names up to the first dot that are followed by `rest` ("m0"
  /// for "m0.t" and rest "t").
  std::vector<std::string> prefixes(const std::string& rest) const;

  /// A metadata value: parsed as JSON where it is JSON, else its text; null if absent.
  Json meta(const std::string& key) const;
  /// metadata.options, an object (empty if absent).
  const Json& options() const { return options_; }

 private:
  SafetensorsFile file_;
  Json options_;
};

/// options[key], or `otherwise` if absent; also reads numbers where a whole number is stored
/// as 12.0.
double number(const Json& options, const std::string& key, double otherwise);
int64_t whole(const Json& options, const std::string& key, int64_t otherwise);
std::string text(const Json& options, const std::string& key, const std::string& otherwise);
bool flag(const Json& options, const std::string& key, bool otherwise);
/// Throws Skip("KEY VALUE") unless options[key] is absent or one of `built`.
void require(const Json& options, const std::string& key, const std::vector<Json>& built);

constexpr double kEps32 = 1.1920928955078125e-07;
constexpr double kEps64 = 2.220446049250313e-16;

class Report {
 public:
  /// max |actual - expected| over max |expected|, at most `bound`. Shapes must agree; equal
  /// infinities are equal.
  void relative(const std::string& what, const torch::Tensor& actual, const torch::Tensor& expected,
                double bound);
  /// max |actual - expected|, at most `bound` (a number, or a tensor of bounds that broadcasts).
  void absolute(const std::string& what, const torch::Tensor& actual, const torch::Tensor& expected,
                double bound);
  void absolute(const std::string& what, const torch::Tensor& actual, const torch::Tensor& expected,
                const torch::Tensor& bound);
  /// |actual - expected|_2 over max(|expected|_2, floor), at most `bound`.
  void by_norm(const std::string& what, const torch::Tensor& actual, const torch::Tensor& expected,
               double bound, double floor = 0);
  void exact(const std::string& what, const torch::Tensor& actual, const torch::Tensor& expected);
  void is_true(const std::string& what, bool condition);
  void skip(const std::string& option) { skipped_.insert(option); }

  bool failed() const { return !failures_.empty(); }
  int checks() const { return checks_; }
  /// "passed (max error E, bound B)", "failed ...", or "skipped: OPTION is not built".
  std::string line() const;

 private:
  void record(const std::string& what, double error, double bound);
  bool same_shape(const std::string& what, const torch::Tensor& actual,
                  const torch::Tensor& expected);

  int checks_ = 0;
  double worst_ratio_ = -1;
  double worst_error_ = 0;
  double worst_bound_ = 0;
  std::vector<std::string> failures_;
  std::set<std::string> skipped_;
};

/// Runs `body`; a Skip in it skips this sub-case only.
template <typename F>
void sub_case(Report& report, F body) {
  try {
    body();
  } catch (const Skip& skip) {
    report.skip(skip.option);
  }
}

using Runner = void (*)(const GoldenFile&, Report&);

// Families, one function each.
void run_path(const GoldenFile&, Report&);
void run_preconditioner(const GoldenFile&, Report&);
void run_imm_times(const GoldenFile&, Report&);
void run_imm_loss(const GoldenFile&, Report&);
void run_grouped_mmd(const GoldenFile&, Report&);
void run_dit_imm(const GoldenFile&, Report&);
void run_dit_imm_loss(const GoldenFile&, Report&);
void run_transformer(const GoldenFile&, Report&);
void run_flow_matching(const GoldenFile&, Report&);
void run_imm_samplers(const GoldenFile&, Report&);
void run_rope(const GoldenFile&, Report&);
void run_dense(const GoldenFile&, Report&);
void run_sparse(const GoldenFile&, Report&);
void run_multi_token(const GoldenFile&, Report&);
void run_tile_order(const GoldenFile&, Report&);
void run_selection(const GoldenFile&, Report&);
void run_moe(const GoldenFile&, Report&);
void run_hog(const GoldenFile&, Report&);
void run_mask_ratio(const GoldenFile&, Report&);
void run_kl(const GoldenFile&, Report&);
void run_vq(const GoldenFile&, Report&);
void run_tokenizer(const GoldenFile&, Report&);
void run_train_step(const GoldenFile&, Report&);
void run_mae(const GoldenFile&, Report&);
void run_semanticist(const GoldenFile&, Report&);
void run_rope_mixed(const GoldenFile&, Report&);
void run_movq(const GoldenFile&, Report&);
void run_metrics(const GoldenFile&, Report&);
void run_image_quality(const GoldenFile&, Report&);
void run_optimizers(const GoldenFile&, Report&);
void run_ema(const GoldenFile&, Report&);

/// The report of one file: picks the runner by the metadata's `case`, else by the file's stem
/// (longest registered prefix).
Report run_file(const std::filesystem::path& path);

}  // namespace sigma::golden
