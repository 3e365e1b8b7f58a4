// Looking at a tokenizer: what its encoder sees of an image in training, and what comes back.
#include <torch/types.h>

#include <algorithm>

#include "sigma/base/error.h"
#include "sigma/cli/cli.h"
#include "sigma/cli/inspect_picture.h"
#include "sigma/cli/tokenizer_run.h"
#include "sigma/metrics/image_quality.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr int64_t kImageWidth = 112;  // pixels that an image is drawn with, about
constexpr int64_t kImages = 8;        // that are shown unless others are asked for
constexpr int64_t kGap = 4;
constexpr int64_t kGroupGap = 20;  // between what goes in, what comes out, and prefixes
constexpr double kGrey = 0.5;      // of patches that are hidden

struct Row {
  std::string what;
  Tensor images;  // uint8 [n,C,Y,X]
  bool masked = false;
  bool compared = true;
  int64_t gap = kGap;  // above
};

class Reconstructions {
 public:
  Reconstructions(const TokenizerRun& run, const Tensor& images, const Context& context)
      : run_(run), images_(images), hidden_(run.model->mask_of(context).hidden) {
    const torch::NoGradGuard no_grad;
    const TokenizerConfig& tokenizer = run.config.tokenizer;
    add("original", images, /*compared=*/false);
    if (hidden_.defined()) {
      add("what the encoder sees in training", images, /*compared=*/false);
      rows_.back().masked = true;
    }
    const Tensor x = to_float(images.to(run.device));
    const Tensor pass = to_bytes(run.model->forward(x, context).value).cpu();
    const bool nested = tokenizer.nesting.kind == "nested";
    add(nested ? "a training pass, of a random prefix" : "a training pass", pass);
    rows_.back().gap = kGroupGap;
    if (hidden_.defined() && tokenizer.pixel.masked_only)
      add("the same beside the patches that were seen", torch::where(over_pixels(), pass, images));
    if (tokenizer.pixel.target != "pixel") return;
    const Tensor latents = encode_images(run, images).latents;
    add("all of the image encoded", decode(latents, -1));
    if (!nested) return;
    for (const int64_t k : prefix_lengths(latents.size(1))) {
      add(k == 1 ? "the first token" : fmt::format("the first {} tokens", k), decode(latents, k));
      if (k == 1) rows_.back().gap = kGroupGap;
    }
  }

  Image picture_of_all() const {
    std::vector<Tensor> lines;
    for (const Row& row : rows_) {
      std::vector<Image> cells;
      for (int64_t i = 0; i < row.images.size(0); ++i) {
        const PatchView view(row.images[i], run_.config.tokenizer.patch_size, kImageWidth);
        Tensor rgb = view.sample();
        if (row.masked) {
          const Tensor hidden = view.over_pixels(hidden_[i]);
          rgb = rgb * (1 - hidden) + kGrey * hidden;
        }
        cells.push_back(picture(rgb));
      }
      const Tensor line = from_image(image_grid(cells, images_.size(0), kGap));
      const int64_t above = lines.empty() ? 0 : row.gap;
      lines.push_back(torch::constant_pad_nd(line, {0, 0, above, 0}, 255));
    }
    return to_image(torch::cat(lines, 1));
  }

  // PSNR of the images that are shown, padding included.
  Json rows() const {
    Json out = Json::array();
    for (const Row& row : rows_) {
      Json json = {{"what", row.what}};
      if (row.compared) {
        const auto in_unit_range = [](const Tensor& x) { return x.to(torch::kDouble).div(255); };
        json["psnr_of_mean"] =
            psnr(mean_squared_errors(in_unit_range(images_), in_unit_range(row.images))
                     .mean()
                     .item<double>());
      }
      out.push_back(std::move(json));
    }
    return out;
  }

  double hidden_share() const {
    return hidden_.defined() ? hidden_.to(torch::kDouble).mean().item<double>() : 0;
  }

 private:
  void add(const std::string& what, const Tensor& images, bool compared = true) {
    rows_.push_back({.what = what, .images = images, .compared = compared});
  }

  Tensor decode(const Tensor& latents, int64_t keep) const {
    return to_bytes(run_.model->decode(latents, evaluation_context(), keep)).cpu();
  }

  // Where patches are hidden, bool [n,1,Y,X].
  Tensor over_pixels() const {
    const int64_t p = run_.config.tokenizer.patch_size;
    const int64_t rows = images_.size(2) / p, columns = images_.size(3) / p;
    return hidden_.view({-1, 1, rows, columns}).repeat_interleave(p, 2).repeat_interleave(p, 3);
  }

  const TokenizerRun& run_;
  Tensor images_;
  Tensor hidden_;  // [n,N]; undefined without a mask
  std::vector<Row> rows_;
};

}  // namespace

CommandResult run_inspect_reconstruction(const InspectReconstructionCommand& command,
                                         const GlobalOptions& global) {
  check_picture_name(command.out, global);
  const TokenizerRun run =
      open_tokenizer({.run = command.run, .ema = command.ema, .device = global.device});
  DataConfig data = run.config.data;
  data.split = has_test_split(data) ? "test" : "train";
  const auto dataset = open_dataset(data);
  std::vector<int64_t> numbers = command.images;
  if (numbers.empty()) {
    for (int64_t i = 0; i < std::min(kImages, dataset->size()); ++i) numbers.push_back(i);
  }
  std::vector<Tensor> images;
  for (const int64_t image : numbers) {
    SIGMA_CHECK(kUsage, image >= 0 && image < dataset->size(), "--image: expected [0, {}), got {}",
                dataset->size(), image);
    images.push_back(dataset->get(image).data);
  }
  if (global.dry_run)
    return planned({command.out}, fmt::format("reconstructions of {} images", images.size()));
  // Masks and prefixes of the last step: ramps have come to their ends.
  Context context = evaluation_context();
  context.rng = {.seed = static_cast<uint64_t>(run.config.train.seed),
                 .step = static_cast<uint64_t>(run.step)};
  context.samples = torch::tensor(numbers, torch::kInt64);
  const Reconstructions reconstructions(run, torch::stack(images), context);

  CommandResult out;
  out.result = {{"run_id", run.run_id},
                {"checkpoint", run.weights_sha256},
                {"data", dataset->info().description},
                {"images", numbers},
                {"hidden_share", reconstructions.hidden_share()},
                {"rows", reconstructions.rows()}};
  write_picture(command.out, reconstructions.picture_of_all(), out.result);
  out.result["file"] = command.out;
  out.text = fmt::format("{}: images {} of {}; rows:\n", command.out, fmt::join(numbers, ", "),
                         dataset->info().description);
  for (const Json& row : out.result["rows"]) {
    out.text += fmt::format("  {}", row["what"].get<std::string>());
    if (row.contains("psnr_of_mean"))
      out.text += fmt::format(": {:.2f} dB", row["psnr_of_mean"].get<double>());
    out.text += "\n";
  }
  return out;
}

}  // namespace sigma
