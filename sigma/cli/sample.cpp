#include <torch/types.h>

#include <charconv>
#include <cmath>

#include "sigma/base/error.h"
#include "sigma/base/sha256.h"
#include "sigma/base/version.h"
#include "sigma/cli/cli.h"
#include "sigma/data/dataset.h"
#include "sigma/io/files.h"
#include "sigma/io/images.h"
#include "sigma/train/load_generator.h"

namespace sigma {
namespace {

constexpr int64_t kPerLabel = 10;
constexpr int64_t kUnlabelled = 64;
constexpr int64_t kMaxCount = 1'000'000;

int64_t parse_int(const std::string& text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  SIGMA_CHECK(kUsage, error == std::errc() && end == text.data() + text.size(),
              "--labels: expected numbers such as 0,3,5-7, got \"{}\"", text);
  return value;
}

// "0,3,5-7" or "all".
std::vector<int64_t> parse_labels(const std::string& text, int64_t num_classes) {
  std::vector<int64_t> out;
  if (text.empty() || text == "all") {
    for (int64_t i = 0; i < num_classes; ++i) out.push_back(i);
    return out;
  }
  SIGMA_CHECK(kUsage, num_classes > 0, "--labels: this generator has no labels");
  size_t begin = 0;
  while (begin <= text.size()) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string part = text.substr(begin, end - begin);
    const size_t dash = part.find('-');
    const int64_t low = parse_int(part.substr(0, dash));
    const int64_t high = dash == std::string::npos ? low : parse_int(part.substr(dash + 1));
    for (int64_t label = low; label <= high; ++label) {
      SIGMA_CHECK(kUsage, label >= 0 && label < num_classes,
                  "--labels: expected labels in [0, {}), got {}", num_classes, label);
      out.push_back(label);
    }
    begin = end + 1;
  }
  return out;
}

// The PNG and, beside it, FILE.json: the same provenance and the file's hash.
void write_png(const std::filesystem::path& path, const Image& image, const Json& provenance) {
  const std::string bytes = encode_png(image, provenance.dump());
  write_file_atomic(path, bytes);
  const Json sidecar = {{"file_sha256", sha256_hex(bytes)}, {"images", provenance}};
  write_file_atomic(path.string() + ".json", sidecar.dump(1) + "\n");
}

struct Setting {
  int64_t steps;
  double guidance;
};

class SampleJob {
 public:
  SampleJob(const SampleCommand& command, const GlobalOptions& global)
      : command_(command), generator_(load_generator(command.run, command.ema, global.device)) {
    const int64_t classes = generator_.config.generator.network.num_classes;
    labels_ = parse_labels(command.labels, classes);
    count_ = command.count;
    const auto rows = static_cast<int64_t>(labels_.size());
    if (count_ == 0) count_ = labels_.empty() ? kUnlabelled : kPerLabel * rows;
    SIGMA_CHECK(kUsage, count_ >= 1 && count_ <= kMaxCount, "--count: expected in [1, {}], got {}",
                kMaxCount, count_);
    columns_ = labels_.empty()
                   ? static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(count_))))
                   : (count_ + rows - 1) / rows;
  }

  // uint8 [count, C, Y, X].
  torch::Tensor draw(const Setting& setting) {
    const SamplerConfig sampler = sampler_of(setting);
    std::vector<torch::Tensor> parts;
    for (int64_t at = 0; at < count_; at += command_.batch) {
      const int64_t size = std::min(command_.batch, count_ - at);
      const torch::Tensor indices =
          torch::arange(command_.first + at, command_.first + at + size, torch::kInt64);
      torch::Tensor labels;
      if (!labels_.empty()) {
        labels = torch::empty({size}, torch::kInt64);
        for (int64_t i = 0; i < size; ++i) labels[i] = label_of(at + i);
      }
      parts.push_back(generator_.model->sample_images(sampler, static_cast<uint64_t>(command_.seed),
                                                      indices, labels,
                                                      compute_dtype_of(generator_.config.train)));
    }
    return torch::cat(parts);
  }

  Json provenance(int64_t i, const Setting& setting, const Image& image) const {
    const SamplerConfig sampler = sampler_of(setting);
    const int64_t batch_first = command_.first + i / command_.batch * command_.batch;
    const int64_t batch_count =
        std::min(command_.batch, count_ - i / command_.batch * command_.batch);
    Json out = {{"v", 1},
                {"sigma", version()},
                {"git", commit_hash()},
                {"checkpoint", generator_.weights_sha256},
                {"run_id", generator_.run_id},
                {"method", generator_.config.generator.objective.kind},
                {"ema", command_.ema},
                {"seed", command_.seed},
                {"index", command_.first + i}};
    if (!labels_.empty()) out["label"] = label_of(i);
    out["sampler"] = sampler.kind;
    out["steps"] = sampler.steps;
    out["guidance"] = sampler.guidance.scale;
    out["dtype"] = generator_.config.train.compute_dtype;
    out["device"] = generator_.config.train.device;
    out["batch"] = {batch_first, batch_count};
    out["pixels"] =
        sha256_hex({reinterpret_cast<const char*>(image.pixels.data()), image.pixels.size()});
    return out;
  }

  void write_grid(const std::filesystem::path& path, const torch::Tensor& images,
                  const Setting& setting) const {
    std::vector<Image> list;
    Json provenances = Json::array();
    for (int64_t i = 0; i < images.size(0); ++i) {
      list.push_back(to_image(images[i]));
      provenances.push_back(provenance(i, setting, list.back()));
    }
    constexpr int64_t kSmall = 64;  // images up to this side are doubled in a grid
    write_png(path, image_grid(list, columns_, /*gap=*/2, list[0].width <= kSmall ? 2 : 1),
              provenances);
  }

  void write_singles(const std::filesystem::path& folder, const torch::Tensor& images,
                     const Setting& setting) const {
    std::filesystem::create_directories(folder);
    for (int64_t i = 0; i < images.size(0); ++i) {
      const Image image = to_image(images[i]);
      write_png(folder / fmt::format("{:06}.png", command_.first + i), image,
                provenance(i, setting, image));
    }
  }

  std::vector<Setting> settings() const {
    const SamplerConfig& own = generator_.config.generator.sampler;
    const std::vector<int64_t> steps =
        command_.steps.empty() ? std::vector{own.steps} : command_.steps;
    const std::vector<double> scales =
        command_.guidance.empty() ? std::vector{own.guidance.scale} : command_.guidance;
    std::vector<Setting> out;
    for (const double scale : scales) {
      for (const int64_t n : steps) out.push_back({n, scale});
    }
    return out;
  }

 private:
  int64_t label_of(int64_t i) const {
    return labels_[static_cast<size_t>(
        std::min(i / columns_, static_cast<int64_t>(labels_.size()) - 1))];
  }
  SamplerConfig sampler_of(const Setting& setting) const {
    SamplerConfig sampler = generator_.config.generator.sampler;
    sampler.steps = setting.steps;
    sampler.guidance.scale = setting.guidance;
    return sampler;
  }

  const SampleCommand& command_;
  LoadedGenerator generator_;
  std::vector<int64_t> labels_;
  int64_t count_ = 0;
  int64_t columns_ = 1;
};

}  // namespace

CommandResult run_sample(const SampleCommand& command, const GlobalOptions& global) {
  SIGMA_CHECK(kUsage, command.batch >= 1, "--batch: expected at least 1, got {}", command.batch);
  SIGMA_CHECK(kUsage, command.first >= 0 && command.seed >= 0,
              "--first and --seed: expected at least 0");
  SampleJob job(command, global);
  const std::filesystem::path out_path = command.out;
  const bool folder = command.out.ends_with('/') || std::filesystem::is_directory(out_path);
  SIGMA_CHECK(kUsage, folder || out_path.extension() == ".png",
              "-o {}: expected FILE.png for a grid, or DIR/ for single images", command.out);
  const auto settings = job.settings();
  CommandResult out;
  out.result["files"] = Json::array();
  for (const Setting& setting : settings) {
    // Several settings: their values join the name.
    const std::string suffix =
        settings.size() > 1 ? fmt::format("-steps{}-guidance{}", setting.steps, setting.guidance)
                            : "";
    const torch::Tensor images = job.draw(setting);
    const std::filesystem::path path =
        folder ? out_path / (settings.size() > 1 ? suffix.substr(1) : "")
               : out_path.parent_path() / (out_path.stem().string() + suffix + ".png");
    if (folder) job.write_singles(path, images, setting);
    else job.write_grid(path, images, setting);
    out.result["files"].push_back(path.string());
    out.text += fmt::format("{}: {} images, steps {}, guidance {}\n", path.string(), images.size(0),
                            setting.steps, setting.guidance);
  }
  return out;
}

}  // namespace sigma
