#include "sigma/cli/report_parts.h"

#include <algorithm>
#include <cmath>

#include "sigma/base/error.h"
#include "sigma/cli/html.h"
#include "sigma/io/files.h"
#include "sigma/io/images.h"

namespace sigma {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> png_files(const fs::path& folder) {
  std::vector<fs::path> out;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    if (entry.is_regular_file() && entry.path().extension() == ".png") out.push_back(entry.path());
  }
  std::sort(out.begin(), out.end());
  return out;
}

// Of many, `most` evenly from the first to the last.
std::vector<fs::path> thinned(const std::vector<fs::path>& files, size_t most) {
  if (files.size() <= most) return files;
  std::vector<fs::path> out;
  for (size_t i = 0; i < most; ++i) out.push_back(files[i * (files.size() - 1) / (most - 1)]);
  return out;
}

// Of the record that sigma sample writes into a PNG; empty: none.
std::string record_text(std::string_view png, const std::string& name) {
  const std::string text = read_provenance(png, name);
  if (text.empty()) return "";
  Json record = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  std::string out;
  if (record.is_array()) {
    out = fmt::format("{} images", record.size());
    record = record.empty() ? Json() : record[0];
  }
  if (!record.is_object()) return "";
  for (const char* key : {"seed", "sampler", "steps", "guidance", "ema", "checkpoint"}) {
    if (!record.contains(key)) continue;
    const Json& value = record[key];
    std::string shown = value.is_string() ? value.get<std::string>() : value.dump();
    if (std::string_view(key) == "checkpoint") shown = shown.substr(0, 12);
    out += fmt::format("{}{} {}", out.empty() ? "" : ", ", key, shown);
  }
  return out;
}

}  // namespace

std::string run_name(const fs::path& run) { return fs::weakly_canonical(run).filename().string(); }

std::string number_text(double value) {
  return std::isfinite(value) ? fmt::format("{:.4g}", value) : "-";
}

double cost_of(const Cost& cost, const std::string& at) {
  if (at == "flops") return cost.flops;
  return at == "seconds" ? cost.seconds : cost.images;
}

Series curve_of(const RunLog& log, const std::string& value, const std::string& at,
                const std::string& name) {
  Series out{.name = name, .x = {}, .y = {}};
  for (const LogStep& step : log.steps) {
    const auto found = step.values.find(value);
    if (found == step.values.end()) continue;
    out.x.push_back(cost_of(step.cost, at));
    out.y.push_back(found->second);
  }
  return out;
}

std::string pictures_of(const fs::path& run) {
  std::vector<fs::path> files = png_files(run);
  std::vector<fs::path> of_training;
  for (const fs::path& file : png_files(run / "samples")) {
    if (file.filename().string().starts_with("step-")) of_training.push_back(file);
    else files.push_back(file);
  }
  for (const fs::path& file : thinned(of_training, 6)) files.push_back(file);
  std::string out;
  for (const fs::path& file : files) {
    const std::string png = read_file(file);
    std::string caption = fs::relative(file, run).string();
    try {
      const std::string record = record_text(png, file.string());
      if (!record.empty()) caption += ": " + record;
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kData) throw;
      caption += ": its record is damaged";
    }
    out += html_picture(png, caption);
  }
  return out.empty() ? "" : "<div class=\"grid\">\n" + out + "</div>\n";
}

}  // namespace sigma
