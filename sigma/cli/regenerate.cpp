// `sigma regenerate`: makes the images of a PNG again from the record inside it, and compares.
#include <torch/cuda.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>

#include "sigma/base/error.h"
#include "sigma/base/version.h"
#include "sigma/cli/cli.h"
#include "sigma/cli/sampling.h"
#include "sigma/data/dataset.h"
#include "sigma/data/readers.h"
#include "sigma/io/files.h"
#include "sigma/io/image_draw.h"
#include "sigma/metrics/image_quality.h"
#include "sigma/train/find_weights.h"
#include "sigma/train/open_run.h"

namespace sigma {
namespace {

using torch::Tensor;

struct Picture {
  std::string bytes;
  std::string text;  // of the chunk
  Image image;
  std::vector<ImageRecord> records;
};

Picture read_picture(const std::string& file) {
  Picture out;
  out.bytes = read_data_file(file, "FILE is a PNG that sigma sample wrote");
  out.text = read_provenance(out.bytes, file);
  if (out.text.empty()) {
    throw Error(ErrorKind::kData, fmt::format("{}: expected provenance, found none", file),
                "sigma regenerate repeats images that sigma sample wrote");
  }
  out.records = parse_image_records(out.text, file);
  out.image = decode_image(out.bytes, file);
  const ImageRecord& first = out.records[0];
  for (const ImageRecord& record : out.records) {
    SIGMA_CHECK(kData,
                record.checkpoint == first.checkpoint && record.ema == first.ema &&
                    record.tokenizer == first.tokenizer && record.device == first.device &&
                    record.dtype == first.dtype,
                "{}: provenance: expected images of one checkpoint, device and dtype", file);
  }
  return out;
}

SamplePass pass_of(const ImageRecord& record, bool alone) {
  SamplerConfig sampler;
  sampler.kind = record.sampler;
  sampler.steps = record.steps;
  sampler.schedule = record.schedule;
  sampler.rho = record.rho;
  sampler.mid_eta = record.mid_eta;
  sampler.guidance = {
      .scale = record.guidance, .t_lo = record.guidance_range[0], .t_hi = record.guidance_range[1]};
  SamplePass out{.sampler = sampler, .seed = record.seed};
  if (alone) {
    out.first = record.index;
    if (record.label) out.labels = {{*record.label, 1}};
  } else {
    out.first = record.batch_first;
    out.count = record.batch_count;
    out.labels = record.batch_labels;
  }
  return out;
}

Json tree_of(SamplerConfig sampler) { return write_config(visit_of(sampler)); }

// Values that no recipe and no command line may have: the record is damaged.
void check_pass(const SamplePass& pass, const LoadedGenerator& generator, const std::string& name) {
  const int64_t classes = generator.config.generator.network.num_classes;
  bool fit = pass.labels.empty() == (classes == 0);
  for (const auto& [label, count] : pass.labels) fit = fit && label < classes;
  SIGMA_CHECK(kData, fit, "{}: provenance: expected labels in [0, {})", name, classes);
  try {
    SamplerConfig sampler;
    read_config(visit_of(sampler), tree_of(pass.sampler), "provenance");
    sampler_times(sampler, generator.model->path());
  } catch (const Error& error) {
    throw Error(ErrorKind::kData, fmt::format("{}: {}", name, error.what()));
  }
}

// The image of each record, made again; a pass of several of them once.
std::vector<SampledImage> repeat(const LoadedGenerator& generator,
                                 const std::vector<ImageRecord>& records, bool alone,
                                 const std::string& name) {
  std::map<std::string, std::vector<SampledImage>> passes;
  std::vector<SampledImage> out;
  for (const ImageRecord& record : records) {
    const SamplePass pass = pass_of(record, alone);
    const std::string key = Json{
        {"sampler", tree_of(pass.sampler)},
        {"seed", pass.seed},
        {"first", pass.first},
        {"count", pass.count},
        {"labels", pass.labels}}.dump();
    auto found = passes.find(key);
    if (found == passes.end()) {
      check_pass(pass, generator, name);
      found = passes.emplace(key, sample_pass(generator, pass)).first;
    }
    out.push_back(found->second[static_cast<size_t>(record.index - pass.first)]);
  }
  return out;
}

struct Comparison {
  std::vector<int64_t> different;  // positions in the list of records
  int64_t max_difference = 0;      // of 255
  double psnr = 0;                 // of the images that differ, in dB
  bool altered = false;            // some image in the file is not the recorded one
  bool reproduced = true;          // every image made here is the recorded one
  Image picture;                   // the file's, with the images made here in their places
};

Comparison compare(const Picture& file, const std::vector<SampledImage>& again,
                   const std::string& name) {
  Comparison out{.picture = file.image};
  std::vector<Tensor> errors;
  for (size_t i = 0; i < again.size(); ++i) {
    const ImageRecord& record = file.records[i];
    const Image& image = again[i].image;
    const auto [left, top, scale] = record.at.value_or(std::array<int64_t, 3>{0, 0, 1});
    const bool whole = record.at || (image.height == file.image.height &&
                                     image.width == file.image.width && file.records.size() == 1);
    SIGMA_CHECK(kData, whole && image.channels == file.image.channels,
                "{}: expected a picture of {}x{}x{}, as its checkpoint makes them, got {}x{}x{}",
                name, image.width, image.height, image.channels, file.image.width,
                file.image.height, file.image.channels);
    Image there;
    try {
      there = cut_image(file.image, image.height, image.width, left, top, scale);
    } catch (const Error& error) {
      throw Error(ErrorKind::kData, fmt::format("{}: provenance: at: {}", name, error.what()));
    }
    draw_image(out.picture, image, left, top, scale);
    // All pixels of an enlarged image, not only the ones that were cut out.
    const auto region = [&](const Image& from) {
      return cut_image(from, image.height * scale, image.width * scale, left, top);
    };
    const Image before = region(file.image), now = region(out.picture);
    out.altered = out.altered || pixels_sha256(there) != record.pixels;
    out.reproduced = out.reproduced && pixels_sha256(image) == record.pixels;
    if (before.pixels == now.pixels) continue;
    out.different.push_back(static_cast<int64_t>(i));
    const Tensor a = from_image(before).to(torch::kDouble), b = from_image(now).to(torch::kDouble);
    out.max_difference =
        std::max(out.max_difference, static_cast<int64_t>((a - b).abs().max().item<double>()));
    errors.push_back(mean_squared_errors((a / 255).unsqueeze(0), (b / 255).unsqueeze(0)));
  }
  if (!errors.empty()) out.psnr = psnr(torch::cat(errors).mean().item<double>());
  return out;
}

// What differs between the making and the repeating, of all that decides the last bits.
Json changes(const ImageRecord& recorded, const ImageRecord& here) {
  Json out = Json::array();
  const auto compare_text = [&](const char* what, const std::string& then, const std::string& now) {
    if (then != now) out.push_back({{"what", what}, {"recorded", then}, {"here", now}});
  };
  compare_text("build", recorded.sigma + " (" + recorded.git + ")",
               here.sigma + " (" + here.git + ")");
  compare_text("device", recorded.device, here.device);
  compare_text("hardware", recorded.hardware, here.hardware);
  compare_text("dtype", recorded.dtype, here.dtype);
  compare_text("batch", fmt::format("[{}, {}]", recorded.batch_first, recorded.batch_count),
               fmt::format("[{}, {}]", here.batch_first, here.batch_count));
  compare_text("deterministic", recorded.deterministic ? "yes" : "no",
               here.deterministic ? "yes" : "no");
  return out;
}

std::string report_of(const RegenerateCommand& command, const Picture& file,
                      const Comparison& comparison, const Json& differs,
                      const LoadedGenerator& generator) {
  const size_t count = file.records.size();
  const std::string images = count == 1 ? "1 image" : fmt::format("{} images", count);
  if (comparison.different.empty())
    return fmt::format("{}: identical: {} of {}\n", command.file, images,
                       generator.checkpoint.string());
  std::string text = fmt::format(
      "{}: differs: {} of {}, max |difference| {} of 255, PSNR {:.2f} dB\n", command.file,
      comparison.different.size(), images, comparison.max_difference, comparison.psnr);
  std::vector<int64_t> indices;
  for (const int64_t i : comparison.different)
    indices.push_back(file.records[static_cast<size_t>(i)].index);
  constexpr size_t kShown = 10;
  const size_t shown = std::min(indices.size(), kShown);
  text +=
      fmt::format("  images {}{}\n",
                  fmt::join(indices.begin(), indices.begin() + static_cast<int64_t>(shown), ", "),
                  indices.size() > shown ? ", ..." : "");
  if (comparison.altered) text += "  the file was changed: its pixels are not the recorded ones\n";
  if (comparison.reproduced) text += "  what is recorded comes out again, bit for bit\n";
  for (const Json& change : differs)
    text += fmt::format("  {}: recorded {}, here {}\n", change["what"].get<std::string>(),
                        change["recorded"].get<std::string>(), change["here"].get<std::string>());
  if (!comparison.reproduced && differs.empty())
    text += "  build, device, hardware and dtype are the recorded ones\n";
  return text;
}

}  // namespace

CommandResult run_regenerate(const RegenerateCommand& command, const GlobalOptions& global) {
  if (!command.out.empty()) {
    SIGMA_CHECK(kUsage, std::filesystem::path(command.out).extension() == ".png",
                "-o {}: expected FILE.png", command.out);
    check_output(command.out, global);
  }
  const Picture file = read_picture(command.file);
  const ImageRecord& record = file.records[0];
  std::vector<std::filesystem::path> places;
  if (!command.checkpoint.empty()) places.emplace_back(command.checkpoint);
  places.emplace_back("runs");
  const Checkpoint checkpoint =
      find_weights(record.checkpoint, weights_stem(record.ema), record.path, places);
  // As it was made, where this machine can.
  std::string device = global.device;
  if (device == "auto" && (record.device == "cpu" || torch::cuda::is_available()))
    device = record.device;
  if (global.dry_run) {
    return planned(command.out.empty() ? std::vector<std::string>{} : std::vector{command.out},
                   fmt::format("{} images of {}", file.records.size(), checkpoint.folder.string()),
                   {{"images", file.records.size()}, {"checkpoint", checkpoint.folder.string()}});
  }
  const LoadedGenerator generator = load_generator_at(checkpoint, record.ema, device);
  const auto& tokenizer = generator.model->tokenizer();
  const std::string decoder = tokenizer ? tokenizer->weights_sha256 : "";
  SIGMA_CHECK(
      kCheckpoint, decoder == record.tokenizer, "{}: expected the tokenizer of SHA-256 {}, got {}",
      (generator.run / "tokenizer").string(), record.tokenizer.empty() ? "none" : record.tokenizer,
      decoder.empty() ? "none" : decoder);

  const std::vector<SampledImage> again =
      repeat(generator, file.records, command.alone, command.file);
  const Comparison comparison = compare(file, again, command.file);
  const Json differs = changes(record, again[0].record);
  const std::string bytes = encode_png(comparison.picture, file.text);
  if (!command.out.empty()) write_file_atomic(command.out, bytes);
  const bool identical = comparison.different.empty();
  CommandResult out;
  out.result = {{"file", command.file},
                {"identical", identical},
                {"bytes_equal", bytes == file.bytes},
                {"images", file.records.size()},
                {"different", comparison.different},
                {"max_difference", comparison.max_difference},
                {"psnr", identical ? Json() : Json(comparison.psnr)},
                {"file_altered", comparison.altered},
                {"record_reproduced", comparison.reproduced},
                {"differs", differs},
                {"checkpoint", checkpoint.folder.string()}};
  if (!command.out.empty()) out.result["out"] = command.out;
  out.text = report_of(command, file, comparison, differs, generator);
  out.exit_code = identical ? 0 : static_cast<int>(ErrorKind::kFailure);
  return out;
}

}  // namespace sigma
