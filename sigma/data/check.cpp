#include "sigma/data/check.h"

#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "sigma/base/error.h"
#include "sigma/data/readers.h"

namespace sigma {
namespace {

constexpr size_t kShownPairs = 8;
constexpr size_t kShownBad = 50;  // in the text; JSON has all

using Digest = std::array<uint8_t, 32>;

// The split, or null; what cannot be read goes to `bad`.
std::unique_ptr<Dataset> try_open(const DataConfig& config, std::vector<BadSample>& bad) {
  try {
    if (config.kind != "folder") return open_dataset(config);
    FolderScan scan = scan_folder(config);
    bad.insert(bad.end(), scan.bad.begin(), scan.bad.end());
    return std::move(scan.dataset);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kData) throw;
    bad.push_back({config.split, error.what()});
    return nullptr;
  }
}

// Sums of all values, exact for bytes.
struct Moments {
  double sum = 0;
  double squares = 0;
  double count = 0;
  void add(const torch::Tensor& data) {
    if (data.scalar_type() == torch::kUInt8) {
      const torch::Tensor bytes = data.contiguous();
      const auto* k = bytes.data_ptr<uint8_t>();
      uint64_t s = 0;
      uint64_t q = 0;
      for (int64_t i = 0; i < bytes.numel(); ++i) {
        s += k[i];
        q += uint64_t{k[i]} * k[i];
      }
      sum += static_cast<double>(s) / 255;
      squares += static_cast<double>(q) / (255 * 255);
    } else {
      const torch::Tensor values = data.to(torch::kDouble);
      sum += values.sum().item<double>();
      squares += values.square().sum().item<double>();
    }
    count += static_cast<double>(data.numel());
  }
};

class Checker {
 public:
  explicit Checker(DataReport& report) : report_(report) {}

  void read_split(const Dataset& dataset, const std::string& split) {
    report_.description = dataset.info().description;
    report_.sample_shape = dataset.info().sample_shape;
    report_.class_names = dataset.info().class_names;
    report_.class_counts.assign(static_cast<size_t>(dataset.info().num_classes), 0);
    DataHasher hasher;
    Moments moments;
    for_each(dataset, [&](const Sample& sample) {
      ++report_.count;
      if (sample.label >= 0) ++report_.class_counts.at(static_cast<size_t>(sample.label));
      moments.add(sample.data);
      const std::string name = split + ":" + sample.id;
      const auto [first, is_new] = seen_.emplace(hasher.add(sample), name);
      if (is_new) return;
      ++report_.duplicates_within;
      add_pair(first->second, name);
    });
    report_.data_hash = hasher.hex();
    report_.mean = moments.sum / moments.count;
    report_.std =
        std::sqrt(std::max(0.0, moments.squares / moments.count - report_.mean * report_.mean));
  }

  void read_other_split(const Dataset& dataset, const std::string& split) {
    DataHasher hasher;
    for_each(dataset, [&](const Sample& sample) {
      const auto found = seen_.find(hasher.add(sample));
      if (found == seen_.end()) return;
      ++report_.duplicates_across;
      add_pair(found->second, split + ":" + sample.id);
    });
  }

 private:
  template <typename F>
  void for_each(const Dataset& dataset, F&& visit) {
    for (int64_t i = 0; i < dataset.size(); ++i) {
      try {
        visit(dataset.get(i));
      } catch (const Error& error) {
        report_.bad.push_back({std::to_string(i), error.what()});
      }
    }
  }

  void add_pair(const std::string& first, const std::string& second) {
    if (report_.duplicate_pairs.size() < kShownPairs)
      report_.duplicate_pairs.push_back({first, second});
  }

  DataReport& report_;
  std::map<Digest, std::string> seen_;  // pixels -> the first sample with them
};

}  // namespace

DataReport check_data(const DataConfig& config) {
  DataReport report;
  Checker checker(report);
  if (const auto dataset = try_open(config, report.bad)) checker.read_split(*dataset, config.split);
  DataConfig other = config;
  other.split = config.split == "train" ? "test" : "train";
  if (other.split == "train" || (report.count > 0 && has_test_split(config))) {
    if (const auto dataset = try_open(other, report.bad))
      checker.read_other_split(*dataset, other.split);
  }
  return report;
}

Json DataReport::to_json() const {
  Json classes = Json::array();
  for (size_t i = 0; i < class_counts.size(); ++i) {
    classes.push_back({{"name", class_names.at(i)}, {"count", class_counts[i]}});
  }
  Json bad_list = Json::array();
  for (const BadSample& sample : bad)
    bad_list.push_back({{"id", sample.id}, {"reason", sample.reason}});
  Json pairs = Json::array();
  for (const Pair& pair : duplicate_pairs) pairs.push_back({pair.first, pair.second});
  return {
      {"description", description},
      {"count", count},
      {"sample_shape", sample_shape},
      {"classes", std::move(classes)},
      {"mean", mean},
      {"std", std},
      {"bad", std::move(bad_list)},
      {"duplicates",
       {{"within", duplicates_within}, {"across", duplicates_across}, {"pairs", std::move(pairs)}}},
      {"data_hash", data_hash}};
}

std::string DataReport::to_text() const {
  std::string text;
  const auto line = [&text](const char* name, const std::string& value) {
    text += fmt::format("{:<12}{}\n", name, value);
  };
  if (count > 0) {
    line("data", description);
    line("samples", std::to_string(count));
    line("shape", fmt::format("{}", fmt::join(sample_shape, "x")));
    line("mean, std", fmt::format("{:.7f}, {:.7f}", mean, std));
    for (size_t i = 0; i < class_counts.size(); ++i) {
      line(i == 0 ? "classes" : "", fmt::format("{:>8}  {}", class_counts[i], class_names.at(i)));
    }
    line("duplicates", fmt::format("{} within the split, {} across splits", duplicates_within,
                                   duplicates_across));
    for (const Pair& pair : duplicate_pairs)
      line("", fmt::format("{} = {}", pair.first, pair.second));
    line("data hash", data_hash);
  }
  line("bad", std::to_string(bad.size()));
  for (size_t i = 0; i < std::min(bad.size(), kShownBad); ++i)
    line("", bad[i].id + ": " + bad[i].reason);
  if (bad.size() > kShownBad) line("", fmt::format("and {} more", bad.size() - kShownBad));
  return text;
}

Image contact_sheet(const Dataset& dataset, int64_t columns) {
  const DatasetInfo& info = dataset.info();
  SIGMA_CHECK(kUsage, columns >= 1, "contact sheet: expected at least one column, got {}", columns);
  SIGMA_CHECK(kUsage, !info.latents, "contact sheet: expected images, got latents ({})",
              info.description);
  const auto rows = static_cast<size_t>(std::max<int64_t>(info.num_classes, 1));
  const auto width = static_cast<size_t>(info.num_classes > 0 ? columns : columns * columns);
  std::vector<std::vector<Image>> found(rows);
  size_t missing = rows * width;
  for (int64_t i = 0; i < dataset.size() && missing > 0; ++i) {
    const Sample sample = dataset.get(i);
    auto& row = found.at(static_cast<size_t>(std::max<int64_t>(sample.label, 0)));
    if (row.size() == width) continue;
    row.push_back(to_image(sample.data));
    --missing;
  }
  std::vector<Image> cells;
  for (auto& row : found) {
    const size_t count = info.num_classes > 0 ? width : row.size();
    row.resize(count, to_image(torch::full(info.sample_shape, 255, torch::kUInt8)));
    cells.insert(cells.end(), row.begin(), row.end());
  }
  return image_grid(cells, columns);
}

}  // namespace sigma
