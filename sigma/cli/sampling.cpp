#include "sigma/cli/sampling.h"

#ifdef SIGMA_CUDA
#include <ATen/cuda/CUDAContext.h>
#endif
#include <torch/utils.h>

#include <algorithm>
#include <charconv>
#include <utility>

#include "sigma/base/error.h"
#include "sigma/base/sha256.h"
#include "sigma/base/version.h"
#include "sigma/data/dataset.h"
#include "sigma/io/files.h"
#include "sigma/io/image_draw.h"

namespace sigma {
namespace {

constexpr int64_t kSmall = 64;  // images up to this side are doubled in a grid

int64_t parse_int(const std::string& text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  SIGMA_CHECK(kUsage, error == std::errc() && end == text.data() + text.size(),
              "--labels: expected numbers such as 0,3,5-7, got \"{}\"", text);
  return value;
}

torch::Tensor labels_of(const SamplePass& pass) {
  if (pass.labels.empty()) return {};
  std::vector<torch::Tensor> parts;
  for (const auto& [label, count] : pass.labels)
    parts.push_back(torch::full({count}, label, torch::kInt64));
  return torch::cat(parts);
}

ImageRecord common_record(const LoadedGenerator& generator, const SamplePass& pass) {
  const SamplerConfig& sampler = pass.sampler;
  const auto& tokenizer = generator.model->tokenizer();
  return {.sigma = version(),
          .git = commit_hash(),
          .checkpoint = generator.weights_sha256,
          .path = generator.checkpoint.string(),
          .run_id = generator.run_id,
          .tokenizer = tokenizer ? tokenizer->weights_sha256 : "",
          .method = generator.config.generator.objective.kind,
          .ema = generator.ema,
          .seed = pass.seed,
          .sampler = sampler.kind,
          .schedule = sampler.schedule,
          .steps = sampler.steps,
          .rho = sampler.rho,
          .mid_eta = sampler.mid_eta,
          .guidance = sampler.guidance.scale,
          .guidance_range = {sampler.guidance.t_lo, sampler.guidance.t_hi},
          .dtype = generator.config.train.compute_dtype,
          .device = generator.config.train.device,
          .hardware = hardware_text(device_of(generator.config.train)),
          .deterministic = at::globalContext().deterministicAlgorithms(),
          .batch_first = pass.first,
          .batch_count = pass.count,
          .batch_labels = pass.labels};
}

std::vector<SamplePass> passes_of(const SamplerConfig& sampler, int64_t seed, int64_t first,
                                  int64_t count, const std::vector<int64_t>& labels,
                                  int64_t batch) {
  std::vector<SamplePass> out;
  for (int64_t at = 0; at < count; at += batch) {
    SamplePass pass{.sampler = sampler,
                    .seed = seed,
                    .first = first + at,
                    .count = std::min(batch, count - at)};
    for (int64_t i = at; !labels.empty() && i < at + pass.count; ++i) {
      const int64_t label = labels[static_cast<size_t>(i)];
      if (pass.labels.empty() || pass.labels.back().first != label)
        pass.labels.emplace_back(label, 0);
      ++pass.labels.back().second;
    }
    out.push_back(std::move(pass));
  }
  return out;
}

// Paths may hold any bytes, the chunk only ASCII.
std::string chunk_text(const Json& records) {
  return records.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
}

}  // namespace

std::vector<SampledImage> sample_pass(const LoadedGenerator& generator, const SamplePass& pass) {
  const torch::Tensor labels = labels_of(pass);
  const torch::Tensor images = generator.model->sample_images(
      pass.sampler, static_cast<uint64_t>(pass.seed),
      torch::arange(pass.first, pass.first + pass.count, torch::kInt64), labels,
      compute_dtype_of(generator.config.train));
  ImageRecord record = common_record(generator, pass);
  std::vector<SampledImage> out;
  for (int64_t i = 0; i < pass.count; ++i) {
    Image image = to_image(images[i]);
    record.index = pass.first + i;
    if (labels.defined()) record.label = labels[i].item<int64_t>();
    record.pixels = pixels_sha256(image);
    out.push_back({.image = std::move(image), .record = record});
  }
  return out;
}

std::vector<SampledImage> sample_all(const LoadedGenerator& generator, const SamplerConfig& sampler,
                                     int64_t seed, int64_t first, int64_t count,
                                     const std::vector<int64_t>& labels, int64_t batch) {
  std::vector<SampledImage> out;
  for (const SamplePass& pass : passes_of(sampler, seed, first, count, labels, batch)) {
    for (SampledImage& image : sample_pass(generator, pass)) out.push_back(std::move(image));
  }
  return out;
}

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

std::vector<int64_t> spread_labels(const std::vector<int64_t>& labels, int64_t count) {
  std::vector<int64_t> out;
  const auto classes = static_cast<int64_t>(labels.size());
  const int64_t each = classes > 0 ? (count + classes - 1) / classes : 1;
  for (int64_t i = 0; classes > 0 && i < count; ++i)
    out.push_back(labels[static_cast<size_t>(i / each)]);
  return out;
}

std::vector<SamplerConfig> samplers_of(const LoadedGenerator& generator, std::vector<int64_t> steps,
                                       std::vector<double> guidance) {
  const SamplerConfig& own = generator.config.generator.sampler;
  if (steps.empty()) steps = {own.steps};
  if (guidance.empty()) guidance = {own.guidance.scale};
  std::vector<SamplerConfig> out;
  for (const double scale : guidance) {
    for (const int64_t n : steps) {
      out.push_back(own);
      out.back().steps = n;
      out.back().guidance.scale = scale;
      sampler_times(out.back(), generator.model->path());
    }
  }
  return out;
}

std::string hardware_text(torch::Device device) {
#ifdef SIGMA_CUDA
  if (device.is_cuda()) return at::cuda::getDeviceProperties(device.index())->name;
#endif
  return fmt::format("{}, {} threads", at::get_cpu_capability(), at::get_num_threads());
}

int64_t most_in_picture(const LoadedGenerator& generator, const SamplerConfig& sampler,
                        int64_t seed, int64_t first, int64_t count,
                        const std::vector<int64_t>& labels, int64_t batch) {
  if (count > kMaxInPicture) return kMaxInPicture;
  constexpr int64_t kFar = 9'999'999;  // pixels: as long as any place
  size_t longest = 0;
  for (const SamplePass& pass : passes_of(sampler, seed, first, count, labels, batch)) {
    ImageRecord record = common_record(generator, pass);
    record.index = pass.first + pass.count - 1;
    for (const auto& [label, images] : pass.labels)
      record.label = std::max(record.label.value_or(0), label);
    record.at = {kFar, kFar, 1};
    record.pixels = sha256_hex("");
    longest = std::max(longest, chunk_text(to_json(record)).size());
  }
  // A comma follows each, or the brackets go around.
  const size_t fit = (kMaxProvenance - 1) / (longest + 1);
  return std::min(kMaxInPicture, static_cast<int64_t>(fit));
}

Sheet::Sheet(int64_t height, int64_t width, int64_t channels)
    : picture_(white_image(height, width, channels)) {}

void Sheet::add(const SampledImage& sampled, int64_t left, int64_t top, int64_t scale) {
  draw_image(picture_, sampled.image, left, top, scale);
  ImageRecord record = sampled.record;
  record.at = {left, top, scale};
  records_.push_back(to_json(record));
}

void Sheet::write(const std::filesystem::path& path) const {
  write_recorded_png(path, picture_, records_);
}

int64_t grid_scale(const Image& image) { return image.width <= kSmall ? 2 : 1; }

Sheet grid_sheet(const std::vector<SampledImage>& images, int64_t columns) {
  const Image& one = images.at(0).image;
  const auto count = static_cast<int64_t>(images.size());
  columns = std::min(columns, count);
  const int64_t rows = (count + columns - 1) / columns;
  const int64_t scale = grid_scale(one);
  const int64_t height = one.height * scale + kGridGap, width = one.width * scale + kGridGap;
  Sheet sheet(rows * height - kGridGap, columns * width - kGridGap, one.channels);
  for (int64_t i = 0; i < count; ++i)
    sheet.add(images[static_cast<size_t>(i)], i % columns * width, i / columns * height, scale);
  return sheet;
}

std::vector<std::string> recorded_png_files(const std::filesystem::path& path) {
  return {path.string(), path.string() + ".json"};
}

void write_recorded_png(const std::filesystem::path& path, const Image& image,
                        const Json& records) {
  const std::string bytes = encode_png(image, chunk_text(records));
  write_file_atomic(path, bytes);
  const Json sidecar = {{"file_sha256", sha256_hex(bytes)}, {"images", records}};
  write_file_atomic(
      recorded_png_files(path).back(),
      sidecar.dump(1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace) + "\n");
}

}  // namespace sigma
