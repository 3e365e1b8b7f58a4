#include "sigma/metrics/metric.h"

#include <dlfcn.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include "sigma/base/error.h"

namespace sigma {

Json MetricResult::to_json() const {
  return {{"name", name},           {"value", value},  // NaN becomes null
          {"extractor", extractor}, {"extractor_sha256", extractor_sha256},
          {"reference", reference}, {"n_reference", n_reference},
          {"n_samples", n_samples}, {"floor", floor}};
}

MetricResult MetricResult::from_json(const Json& json) {
  const auto number = [&](const char* key) {
    return json.at(key).is_null() ? std::nan("") : json.at(key).get<double>();
  };
  try {
    return {.name = json.at("name").get<std::string>(),
            .value = number("value"),
            .extractor = json.at("extractor").get<std::string>(),
            .extractor_sha256 = json.at("extractor_sha256").get<std::string>(),
            .reference = json.at("reference").get<std::string>(),
            .n_reference = json.at("n_reference").get<int64_t>(),
            .n_samples = json.at("n_samples").get<int64_t>(),
            .floor = number("floor")};
  } catch (const Json::exception& error) {
    fail(ErrorKind::kData, "metric: expected the fields that eval writes, got {} ({})", json.dump(),
         error.what());
  }
}

std::string incomparable(const MetricResult& a, const MetricResult& b) {
  std::vector<std::string> differences;
  const auto compare = [&](const char* what, const auto& left, const auto& right) {
    if (left != right) differences.push_back(fmt::format("{}: {} and {}", what, left, right));
  };
  compare("name", a.name, b.name);
  compare("extractor", a.extractor, b.extractor);
  compare("extractor_sha256", a.extractor_sha256, b.extractor_sha256);
  compare("reference", a.reference, b.reference);
  compare("n_reference", a.n_reference, b.n_reference);
  compare("n_samples", a.n_samples, b.n_samples);
  return fmt::format("{}", fmt::join(differences, "; "));
}

void MetricsConfig::visit(ConfigVisitor& v) {
  v.field("n_samples", n_samples, in(2, 1e7), "generated samples of a metric");
}

std::string find_asset(const std::string& name) {
  namespace fs = std::filesystem;
  std::vector<fs::path> folders;
  if (const char* chosen = std::getenv("SIGMA_ASSETS"); chosen && *chosen)
    folders.emplace_back(chosen);
  std::error_code ignored;
  const fs::path program = fs::read_symlink("/proc/self/exe", ignored).parent_path();
  if (!program.empty()) {
    folders.push_back(program / "assets");
    folders.push_back(program.parent_path() / "assets");
  }
  // Installed: PREFIX/lib/libsigma.so, PREFIX/share/sigma/assets.
  Dl_info library{};
  if (dladdr(reinterpret_cast<const void*>(&find_asset), &library) != 0 && library.dli_fname)
    folders.push_back(fs::path(library.dli_fname).parent_path().parent_path() /
                      "share/sigma/assets");
#ifdef SIGMA_SOURCE_ASSETS
  folders.emplace_back(SIGMA_SOURCE_ASSETS);
#endif
  std::string searched;
  for (const fs::path& folder : folders) {
    if (fs::is_regular_file(folder / name, ignored)) return (folder / name).string();
    searched += (searched.empty() ? "" : ", ") + folder.string();
  }
  throw Error(ErrorKind::kUsage,
              fmt::format("asset: expected a file {}, got none (searched {})", name, searched),
              "set SIGMA_ASSETS to the folder that holds it");
}

}  // namespace sigma
