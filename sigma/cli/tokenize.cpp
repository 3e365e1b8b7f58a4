// Images to a file of latents, and back.
//
//   latents   float32 [n,L,Z], normalised     indices  int64 [n,L], of a vq tokenizer
//   labels    int64 [n], where they are known
//   metadata  format, format_version, weights_sha256 and run_id of the tokenizer, image_shape, source
#include <torch/types.h>

#include <cmath>
#include <optional>

#include "sigma/base/error.h"
#include "sigma/base/progress.h"
#include "sigma/base/version.h"
#include "sigma/cli/cli.h"
#include "sigma/cli/tokenizer_run.h"
#include "sigma/data/readers.h"
#include "sigma/io/files.h"
#include "sigma/io/image_record.h"
#include "sigma/io/images.h"
#include "sigma/io/safetensors.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr const char* kFormat = "sigma_latents";
constexpr const char* kVersion = "1";
constexpr int64_t kSmall = 64;  // images up to this side are doubled in a grid

// An image file, a folder of images, or `train` or `test` of the run's data, prepared as the images
// of the run: its channels, its centre crop, its padding.
std::unique_ptr<Dataset> open_input(const std::string& in, const TokenizerRun& run) {
  DataConfig data = run.config.data;
  if (in == "train" || in == "test") {
    SIGMA_CHECK(kUsage, in == "train" || has_test_split(data),
                "IN: expected train, as the run's data ({}) has no test split, got test",
                data.kind);
    data.split = in;
    return open_dataset(data);
  }
  data.channels = run.image_shape.at(0);
  if (std::filesystem::is_directory(in)) {
    data.kind = "folder";
    data.split = "train";
    data.root = in;
    data.test_fraction = 0;
    return open_dataset(data);
  }
  Image image = with_channels(
      decode_image(read_data_file(in, "IN is an image file, a folder of images, train or test"), in,
                   {.max_pixels = data.max_pixels}),
      data.channels);
  if (data.size > 0) image = center_crop(image, data.size);
  return std::make_unique<MemoryDataset>(pad_images(from_image(image), data.pad).unsqueeze(0),
                                         std::vector<int64_t>{}, std::vector<std::string>{in},
                                         DatasetInfo{.kind = "file", .description = in});
}

std::string sides(const std::vector<int64_t>& shape, int64_t pad) {
  return fmt::format("{}x{}x{}", shape[0], shape[1] - 2 * pad, shape[2] - 2 * pad);
}

void check_batch(int64_t batch) {
  SIGMA_CHECK(kUsage, batch >= 1, "--batch: expected at least 1, got {}", batch);
}

std::string shape_text(const Tensor& x) {
  return fmt::format("{} [{}]", torch::toString(x.scalar_type()), fmt::join(x.sizes(), ","));
}

// The latents of a file, checked against the tokenizer. Errors: kData.
Tensor read_latents(const std::string& path, const TokenizerRun& run) {
  SIGMA_CHECK(kData, std::filesystem::is_regular_file(path),
              "latents: expected a file, got none ({})", path);
  const SafetensorsFile file(path);
  const auto entry = [&](const char* key) {
    const auto found = file.metadata().find(key);
    return found == file.metadata().end() ? std::string("none") : found->second;
  };
  SIGMA_CHECK(kData, entry("format") == kFormat && entry("format_version") == kVersion,
              "latents: expected metadata format {}, format_version {}, got {}, {} ({})", kFormat,
              kVersion, entry("format"), entry("format_version"), path);
  SIGMA_CHECK(kData, entry("weights_sha256") == run.weights_sha256,
              "latents: expected those of tokenizer {} ({}), got those of {} ({})",
              run.weights_sha256, run.folder.string(), entry("weights_sha256"), path);
  const std::vector<int64_t> shape = run.model->latent_shape();
  const int64_t L = shape[0], Z = shape[1];
  // Without latents, the codes of a vq tokenizer say the same.
  const bool vq = run.config.tokenizer.bottleneck.kind == "vq";
  if (!vq || file.contains("latents") || !file.contains("indices")) {
    const Tensor latents = file.load("latents");
    SIGMA_CHECK(kData,
                latents.dim() == 3 && latents.size(1) == L && latents.size(2) == Z &&
                    latents.scalar_type() == torch::kFloat,
                "latents: expected Float [n,{},{}], got {} ({})", L, Z, shape_text(latents), path);
    SIGMA_CHECK(kData, torch::isfinite(latents).all().item<bool>(),
                "latents: expected finite values, got NaN or Inf ({})", path);
    return latents;
  }
  const Tensor indices = file.load("indices");
  const int64_t V = run.config.tokenizer.bottleneck.codes;
  SIGMA_CHECK(kData,
              indices.dim() == 2 && indices.size(1) == L && indices.scalar_type() == torch::kInt64,
              "indices: expected Long [n,{}], got {} ({})", L, shape_text(indices), path);
  SIGMA_CHECK(kData, ((indices >= 0) & (indices < V)).all().item<bool>(),
              "indices: expected codes in [0, {}), got others ({})", V, path);
  const torch::NoGradGuard no_grad;
  return run.model->latents_of(indices.to(run.device)).cpu();
}

// A picture, or one an image.
std::vector<std::string> image_files(const std::string& out, int64_t count) {
  const std::filesystem::path path = out;
  if (path.extension() == ".png") return {out};
  std::vector<std::string> files;
  for (int64_t i = 0; i < count; ++i)
    files.push_back((path / fmt::format("{:06}.png", i)).string());
  return files;
}

void write_images(const DetokenizeCommand& command, const Tensor& images, Json provenance) {
  const std::filesystem::path out = command.out;
  std::vector<Image> list;
  for (int64_t i = 0; i < images.size(0); ++i) list.push_back(to_image(images[i]));
  if (out.extension() == ".png") {
    provenance["images"] = images.size(0);
    const auto columns =
        static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(list.size()))));
    const Image grid = image_grid(list, columns, /*gap=*/2, list[0].width <= kSmall ? 2 : 1);
    write_file_atomic(out, encode_png(grid, provenance.dump()));
    return;
  }
  std::filesystem::create_directories(out);
  const std::vector<std::string> files = image_files(command.out, images.size(0));
  for (size_t i = 0; i < list.size(); ++i) {
    const Image& image = list[i];
    provenance["index"] = i;
    provenance["pixels"] = pixels_sha256(image);
    write_file_atomic(files[i], encode_png(image, provenance.dump()));
  }
}

}  // namespace

CommandResult run_tokenize(const TokenizeCommand& command, const GlobalOptions& global) {
  check_batch(command.batch);
  SIGMA_CHECK(kUsage, command.count >= 0, "--count: expected at least 0, got {}", command.count);
  SIGMA_CHECK(kUsage, std::filesystem::path(command.out).extension() == ".safetensors",
              "-o {}: expected FILE.safetensors", command.out);
  check_output(command.out, global);
  const TokenizerRun run =
      open_tokenizer({.run = command.run, .device = global.device, .finished = true});
  const auto dataset = open_input(command.in, run);
  const DatasetInfo& info = dataset->info();
  const int64_t pad = run.config.data.pad;
  SIGMA_CHECK(kData, info.sample_shape == run.image_shape,
              "IN: expected images of {} pixels, got {} ({})", sides(run.image_shape, pad),
              sides(info.sample_shape, pad), command.in);
  const int64_t count =
      command.count > 0 ? std::min(command.count, dataset->size()) : dataset->size();

  if (global.dry_run) return planned({command.out}, fmt::format("latents of {} images", count));
  Progress progress(run.config.log.interval, global.quiet);
  std::vector<Tensor> latents, indices, labels;
  int64_t done = 0;
  for_batches(*dataset, count, command.batch, [&](const Tensor& images, const Tensor& classes) {
    const Codes codes = encode_images(run, images);
    latents.push_back(codes.latents.cpu());
    if (codes.indices.defined()) indices.push_back(codes.indices.cpu());
    labels.push_back(classes);
    done += images.size(0);
    progress.show(fmt::format("encoding: {}/{}", done, count));
  });
  progress.end_line();

  NamedTensors tensors = {{"latents", torch::cat(latents)}};
  if (!indices.empty()) tensors.emplace_back("indices", torch::cat(indices));
  if (info.num_classes > 0) tensors.emplace_back("labels", torch::cat(labels));
  const std::string sha256 = write_safetensors(command.out, tensors,
                                               {{"format", kFormat},
                                                {"format_version", kVersion},
                                                {"weights_sha256", run.weights_sha256},
                                                {"run_id", run.run_id},
                                                {"image_shape", Json(run.image_shape).dump()},
                                                {"source", info.description}});
  CommandResult out;
  out.result = {{"file", command.out},        {"sha256", sha256},
                {"run", run.folder.string()}, {"weights_sha256", run.weights_sha256},
                {"source", info.description}, {"tensors", Json::object()}};
  out.text = fmt::format("{}: {} images of {}\n", command.out, count, info.description);
  for (const auto& [name, tensor] : tensors) {
    out.result["tensors"][name] = tensor.sizes().vec();
    out.text += fmt::format("  {} {}\n", name, shape_text(tensor));
  }
  return out;
}

CommandResult run_detokenize(const DetokenizeCommand& command, const GlobalOptions& global) {
  check_batch(command.batch);
  const std::filesystem::path path = command.out;
  SIGMA_CHECK(kUsage, path.extension() == ".png" || path.extension().empty(),
              "-o {}: expected FILE.png for a grid, or DIR for single images", command.out);
  const TokenizerRun run =
      open_tokenizer({.run = command.run, .device = global.device, .finished = true});
  SIGMA_CHECK(kUsage, !command.keep || *command.keep >= 1,
              "--keep: expected at least 1 token, got {}", *command.keep);
  const int64_t keep = command.keep.value_or(-1);
  const Tensor latents = read_latents(command.latents, run);
  const int64_t count = latents.size(0);
  SIGMA_CHECK(kData, count > 0, "latents: expected at least 1 image, got none ({})",
              command.latents);

  const std::vector<std::string> files = image_files(command.out, count);
  for (const std::string& file : files) check_output(file, global);
  if (global.dry_run) return planned(files, fmt::format("{} images", count));
  Progress progress(run.config.log.interval, global.quiet);
  std::vector<Tensor> parts;
  int64_t done = 0;
  for (const Tensor& batch : latents.split(command.batch)) {
    parts.push_back(decode_latents(run, batch, keep));
    done += batch.size(0);
    progress.show(fmt::format("decoding: {}/{}", done, count));
  }
  progress.end_line();
  Json provenance = {{"v", 1},
                     {"sigma", version()},
                     {"git", commit_hash()},
                     {"checkpoint", run.weights_sha256},
                     {"run_id", run.run_id},
                     {"method", "detokenize"},
                     {"device", run.config.train.device}};
  if (command.keep) provenance["keep"] = keep;
  const Tensor images = torch::cat(parts);
  write_images(command, images, provenance);

  CommandResult out;
  out.result = {{"out", command.out},
                {"images", count},
                {"run", run.folder.string()},
                {"weights_sha256", run.weights_sha256}};
  if (command.keep) out.result["keep"] = keep;
  out.text =
      fmt::format("{}: {} images of {}x{}{}\n", command.out, count, images.size(2), images.size(3),
                  command.keep ? fmt::format(", the first {} tokens of each", keep) : "");
  return out;
}

}  // namespace sigma
