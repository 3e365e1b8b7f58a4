#include "tests/golden_runners/golden.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

namespace sigma::golden {

using torch::Tensor;

namespace {

constexpr size_t kFailuresShown = 4;

Json parse_or_text(const std::string& value) {
  const Json parsed = Json::parse(value, nullptr, /*allow_exceptions=*/false);
  return parsed.is_discarded() ? Json(value) : parsed;
}

/// |a - b| with equal infinities (and NaN for NaN) counted as 0 and other non-finite differences as
/// infinity.
Tensor difference(const Tensor& actual, const Tensor& expected) {
  const Tensor a = actual.detach().to(torch::kCPU, torch::kDouble);
  const Tensor b = expected.detach().to(torch::kCPU, torch::kDouble);
  const Tensor same = (a == b) | (a.isnan() & b.isnan());
  return (a - b)
      .abs()
      .nan_to_num(std::numeric_limits<double>::infinity(), std::numeric_limits<double>::infinity())
      .masked_fill(same, 0);
}

double largest(const Tensor& x) { return x.numel() == 0 ? 0 : x.max().item<double>(); }

double finite_scale(const Tensor& expected) {
  const Tensor b = expected.detach().to(torch::kDouble).abs();
  const double scale = largest(b.masked_fill(b.isfinite().logical_not(), 0));
  return scale > 0 ? scale : 1;
}

}  // namespace

torch::Device device() {
  const char* name = std::getenv("SIGMA_GOLDEN_DEVICE");
  return name && *name ? torch::Device(name) : torch::kCPU;
}

GoldenFile::GoldenFile(const std::filesystem::path& path) : file_(path), options_(meta("options")) {
  if (!options_.is_object()) options_ = Json::object();
}

Tensor GoldenFile::get(const std::string& name) const {
  const Tensor x = load(name);
  return x.to(x.is_floating_point() ? torch::kDouble : torch::kInt64);
}

bool GoldenFile::is_float32(const std::string& name) const {
  return file_.info(name).dtype == "F32";
}

std::vector<std::string> GoldenFile::names() const {
  std::vector<std::string> out;
  for (const auto& entry : file_.entries()) out.push_back(entry.name);
  return out;
}

std::vector<std::string> GoldenFile::prefixes(const std::string& rest) const {
  std::set<std::string> out;
  for (const auto& name : names()) {
    if (name.size() > rest.size() + 1 && name.ends_with("." + rest))
      out.insert(name.substr(0, name.size() - rest.size() - 1));
  }
  return {out.begin(), out.end()};
}

Json GoldenFile::meta(const std::string& key) const {
  const auto found = file_.metadata().find(key);
  return found == file_.metadata().end() ? Json() : parse_or_text(found->second);
}

double number(const Json& options, const std::string& key, double otherwise) {
  const auto found = options.find(key);
  if (found == options.end() || found->is_null()) return otherwise;
  if (!found->is_number()) throw Skip{fmt::format("{} {}", key, found->dump())};
  return found->get<double>();
}

int64_t whole(const Json& options, const std::string& key, int64_t otherwise) {
  const double value = number(options, key, static_cast<double>(otherwise));
  if (value != std::floor(value)) throw Skip{fmt::format("{} {}", key, value)};
  return static_cast<int64_t>(value);
}

std::string text(const Json& options, const std::string& key, const std::string& otherwise) {
  const auto found = options.find(key);
  if (found == options.end() || found->is_null()) return otherwise;
  return found->is_string() ? found->get<std::string>() : found->dump();
}

bool flag(const Json& options, const std::string& key, bool otherwise) {
  const auto found = options.find(key);
  return found == options.end() || !found->is_boolean() ? otherwise : found->get<bool>();
}

void require(const Json& options, const std::string& key, const std::vector<Json>& built) {
  const auto found = options.find(key);
  if (found == options.end() || found->is_null()) return;
  if (std::find(built.begin(), built.end(), *found) == built.end()) {
    throw Skip{
        fmt::format("{} {}", key, found->is_string() ? found->get<std::string>() : found->dump())};
  }
}

bool Report::same_shape(const std::string& what, const Tensor& actual, const Tensor& expected) {
  if (actual.defined() && actual.sizes() == expected.sizes()) return true;
  ++checks_;
  failures_.push_back(actual.defined() ? fmt::format("{}: expected shape [{}], got [{}]", what,
                                                     fmt::join(expected.sizes(), ","),
                                                     fmt::join(actual.sizes(), ","))
                                       : fmt::format("{}: nothing to compare with", what));
  return false;
}

void Report::record(const std::string& what, double error, double bound) {
  ++checks_;
  if (!(error <= bound))
    failures_.push_back(fmt::format("{}: error {:.3g}, bound {:.3g}", what, error, bound));
  const double ratio = error == 0 ? 0 : error / bound;
  if (ratio > worst_ratio_) {
    worst_ratio_ = ratio;
    worst_error_ = error;
    worst_bound_ = bound;
  }
}

void Report::relative(const std::string& what, const Tensor& actual, const Tensor& expected,
                      double bound) {
  if (!same_shape(what, actual, expected)) return;
  record(what, largest(difference(actual, expected)) / finite_scale(expected), bound);
}

void Report::absolute(const std::string& what, const Tensor& actual, const Tensor& expected,
                      double bound) {
  if (!same_shape(what, actual, expected)) return;
  record(what, largest(difference(actual, expected)), bound);
}

void Report::absolute(const std::string& what, const Tensor& actual, const Tensor& expected,
                      const Tensor& bound) {
  if (!same_shape(what, actual, expected)) return;
  const Tensor error = difference(actual, expected).flatten();
  const Tensor bounds = bound.cpu().expand(actual.sizes()).flatten();
  if (error.numel() == 0) return;
  const auto at = (error / bounds).argmax();
  record(what, error[at].item<double>(), bounds[at].item<double>());
}

void Report::by_norm(const std::string& what, const Tensor& actual, const Tensor& expected,
                     double bound, double floor) {
  if (!same_shape(what, actual, expected)) return;
  const double norm = std::max(expected.to(torch::kDouble).norm().item<double>(), floor);
  record(what, difference(actual, expected).norm().item<double>() / (norm > 0 ? norm : 1), bound);
}

void Report::exact(const std::string& what, const Tensor& actual, const Tensor& expected) {
  absolute(what, actual, expected, 0.0);
}

void Report::is_true(const std::string& what, bool condition) {
  ++checks_;
  if (!condition) failures_.push_back(what);
}

std::string Report::line() const {
  const std::string skips = fmt::format("skipped: {} is not built", fmt::join(skipped_, ", "));
  if (failed()) {
    const size_t shown = std::min(failures_.size(), kFailuresShown);
    std::string out = fmt::format(
        "failed ({})",
        fmt::join(failures_.begin(), failures_.begin() + static_cast<int64_t>(shown), "; "));
    if (failures_.size() > shown) out += fmt::format(" and {} more", failures_.size() - shown);
    return out;
  }
  if (checks_ == 0) return skipped_.empty() ? "failed (nothing was compared)" : skips;
  std::string out =
      fmt::format("passed (max error {:.2e}, bound {:.2e})", worst_error_, worst_bound_);
  return skipped_.empty() ? out : out + "; " + skips;
}

}  // namespace sigma::golden
