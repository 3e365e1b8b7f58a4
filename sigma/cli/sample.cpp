#include <cmath>
#include <filesystem>

#include "sigma/base/error.h"
#include "sigma/cli/cli.h"
#include "sigma/cli/sampling.h"
#include "sigma/cli/sweep.h"
#include "sigma/train/load_generator.h"

namespace sigma {
namespace {

constexpr int64_t kPerLabel = 10;
constexpr int64_t kUnlabelled = 64;
constexpr int64_t kMaxCount = 1'000'000;

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

  std::vector<SampledImage> draw(const SamplerConfig& sampler) const {
    return sample_all(generator_, sampler, command_.seed, command_.first, count_,
                      spread_labels(labels_, count_), command_.batch);
  }

  // Of one setting; names in a folder for single images.
  std::vector<std::filesystem::path> files(const std::filesystem::path& path, bool folder) const {
    if (!folder) return {path};
    std::vector<std::filesystem::path> out;
    for (int64_t i = 0; i < count_; ++i)
      out.push_back(path / fmt::format("{:06}.png", command_.first + i));
    return out;
  }

  void write(const std::filesystem::path& path, bool folder,
             const std::vector<SampledImage>& images) const {
    if (!folder) {
      grid_sheet(images, columns_).write(path);
      return;
    }
    std::filesystem::create_directories(path);
    const auto names = files(path, folder);
    for (size_t i = 0; i < images.size(); ++i)
      write_recorded_png(names[i], images[i].image, to_json(images[i].record));
  }

  int64_t count() const { return count_; }
  // Images of one setting that fit in a grid.
  int64_t most(const SamplerConfig& sampler) const {
    return most_in_picture(generator_, sampler, command_.seed, command_.first, count_,
                           spread_labels(labels_, count_), command_.batch);
  }
  std::vector<SamplerConfig> samplers() const {
    return samplers_of(generator_, command_.steps, command_.guidance);
  }

 private:
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
  SIGMA_CHECK(kUsage, command.seeds >= 0, "--seeds: expected at least 1, got {}", command.seeds);
  if (command.seeds > 0) return run_sweep(command, global);
  SIGMA_CHECK(kUsage, command.metrics.empty() && command.samples < 0,
              "--metrics and --samples: expected with --seeds, which measures");
  const SampleJob job(command, global);
  const std::filesystem::path out_path = command.out;
  const bool folder = command.out.ends_with('/') || std::filesystem::is_directory(out_path);
  SIGMA_CHECK(kUsage, folder || out_path.extension() == ".png",
              "-o {}: expected FILE.png for a grid, or DIR/ for single images", command.out);
  const std::vector<SamplerConfig> samplers = job.samplers();
  for (const SamplerConfig& sampler : samplers) {
    const int64_t most = folder ? job.count() : job.most(sampler);
    if (job.count() <= most) continue;
    throw Error(
        ErrorKind::kUsage,
        fmt::format("--count: expected at most {} images in a grid, got {}", most, job.count()),
        "-o DIR/ writes single images");
  }
  std::vector<std::filesystem::path> paths;
  std::vector<std::string> files;
  for (const SamplerConfig& sampler : samplers) {
    // Several settings: their values join the name.
    const std::string suffix =
        samplers.size() > 1
            ? fmt::format("-steps{}-guidance{}", sampler.steps, sampler.guidance.scale)
            : "";
    paths.push_back(folder ? out_path / (suffix.empty() ? "" : suffix.substr(1))
                           : out_path.parent_path() / (out_path.stem().string() + suffix + ".png"));
    for (const auto& png : job.files(paths.back(), folder)) {
      for (const std::string& file : recorded_png_files(png)) {
        check_output(file, global);
        files.push_back(file);
      }
    }
  }
  if (global.dry_run) {
    return planned(files,
                   fmt::format("{} images for each of {} settings", job.count(), samplers.size()),
                   {{"images", job.count()}, {"settings", samplers.size()}});
  }
  CommandResult out;
  out.result["files"] = Json::array();
  for (size_t i = 0; i < samplers.size(); ++i) {
    const auto images = job.draw(samplers[i]);
    job.write(paths[i], folder, images);
    out.result["files"].push_back(paths[i].string());
    out.text += fmt::format("{}: {} images, steps {}, guidance {}\n", paths[i].string(),
                            images.size(), samplers[i].steps, samplers[i].guidance.scale);
  }
  return out;
}

}  // namespace sigma
