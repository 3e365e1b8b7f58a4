#include "sigma/cli/report_parts.h"

#include <algorithm>
#include <charconv>
#include <map>

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

// "step-0000123" -> 123: a grid that training wrote; -1: another name.
int64_t step_of(const std::string& stem) {
  constexpr std::string_view kPrefix = "step-";
  if (!stem.starts_with(kPrefix)) return -1;
  int64_t step = -1;
  const char* last = stem.data() + stem.size();
  const auto [end, error] = std::from_chars(stem.data() + kPrefix.size(), last, step);
  return error == std::errc() && end == last ? step : -1;
}

std::string caption_of(const fs::path& file, const fs::path& run, const std::string& png) {
  const int64_t step = step_of(file.stem().string());
  const std::string where =
      step >= 0 ? fmt::format("step {}", step) : fs::relative(file, run).string();
  try {
    const std::string record = record_text(png, file.string());
    return record.empty() ? where : where + ": " + record;
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kData) throw;
    return where + ": its record is damaged";
  }
}

}  // namespace

std::string run_name(const fs::path& run) { return fs::weakly_canonical(run).filename().string(); }

std::string images_sha256(const RunLog& log, const Json& info) {
  const Json images = log.of_start("images_sha256");
  return (images.is_string() ? images : info.at("data_sha256")).get<std::string>();
}

double cost_of(const Cost& cost, const std::string& at) {
  if (at == "flops") return cost.flops;
  return at == "seconds" ? cost.seconds : cost.images;
}

std::vector<std::string> curve_names(const std::vector<const RunLog*>& logs) {
  std::map<std::string, size_t> counts;
  for (const RunLog* log : logs) {
    for (const std::string& name : log->names()) ++counts[name];
  }
  std::vector<std::string> names;
  for (const auto& [name, count] : counts) {
    if (count >= std::min<size_t>(logs.size(), 2)) names.push_back(name);
  }
  const auto is_part = [](const std::string& name) { return name.starts_with("losses/"); };
  if (std::count_if(names.begin(), names.end(), is_part) == 1) std::erase_if(names, is_part);
  const auto place = [](const std::string& name) {
    return name.starts_with("loss") ? 0 : name == "lr" || name == "images_per_s" ? 2 : 1;
  };
  std::stable_sort(names.begin(), names.end(),
                   [&](const std::string& a, const std::string& b) { return place(a) < place(b); });
  return names;
}

Series curve_of(const RunLog& log, const std::string& value, const std::string& at,
                const std::string& name) {
  Series out{.name = name, .x = {}, .y = {}};
  for (const LogStep& step : log.steps) {
    const auto found = step.values.find(value);
    const double x = cost_of(step.cost, at);
    if (found == step.values.end() || !std::isfinite(x)) continue;
    out.x.push_back(x);
    out.y.push_back(found->second);
  }
  return out;
}

std::string pictures_of(const fs::path& run) {
  std::vector<fs::path> files = png_files(run);
  std::vector<fs::path> of_training;
  for (const fs::path& file : png_files(run / "samples")) {
    if (step_of(file.stem().string()) >= 0) of_training.push_back(file);
    else files.push_back(file);
  }
  for (const fs::path& file : thinned(of_training, 6)) files.push_back(file);
  std::string out;
  for (const fs::path& file : files) {
    const std::string png = read_file(file);
    out += html_picture(png, caption_of(file, run, png));
  }
  return out.empty() ? "" : "<div class=\"grid\">\n" + out + "</div>\n";
}

}  // namespace sigma
