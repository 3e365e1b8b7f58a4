// Published tokenizers (MAETok, TiTok, Semanticist, MAE, ViTok): tokens, latents, images, losses
// and gradients.
#include <torch/autograd.h>
#include <torch/types.h>

#include "sigma/tokenizer/hog.h"
#include "sigma/trunk/patches.h"
#include "sigma/trunk/positions.h"
#include "tests/golden_runners/published_tokenizer.h"

namespace sigma::golden {
namespace {

using torch::Tensor;

constexpr double kBound = 1e-12;      // float64 throughout
constexpr double kRounded = 1e-6;     // stored in float32
constexpr double kComputed = 1e-6;    // our positions against tables of float32
constexpr double kWithoutEps = 1e-5;  // Semanticist's norm has no eps
constexpr double kCosineEps = 1e-8;
constexpr double kPatchEps = 1e-6;

void scalar(Report& report, const std::string& what, const Tensor& actual, const Tensor& expected,
            double bound = kBound) {
  report.relative(what, actual.reshape({1}), expected.reshape({1}), bound);
}

// What encoder and bottleneck make of a file's images, with the file's noise.
struct Pass {
  Tensor tokens, e;
  Coded coded;
};

Pass encode(PublishedTokenizer& model, const Tensor& images, const Mask& mask,
            const GoldenFile& file) {
  Pass pass;
  pass.tokens = model.tokenizer().encoder().forward(model.patches(images), mask, {}).value;
  pass.e = model.part<Linear>("down").forward(pass.tokens);
  pass.coded = model.part<Bottleneck>("bottleneck").forward(pass.e, {});
  if (file.has("input.noise"))
    pass.coded.latents = sample_gaussian(split_gaussian(pass.e), file.get("input.noise"));
  return pass;
}

void compare_losses(const GoldenFile& file, const PublishedTokenizer& model, const Losses& losses,
                    Report& report) {
  const std::string reduction = model.config().bottleneck.kl_reduction;
  const std::string kl = "output.loss.kl_" + reduction + "_unweighted";
  if (file.has(kl))
    scalar(report, "kl", losses.at("kl"), model.config().bottleneck.kl_weight * file.get(kl));
  for (const std::string name : {"codebook", "commit"}) {
    if (file.has("output.loss." + name))
      scalar(report, name, losses.at("vq." + name), file.get("output.loss." + name));
  }
}

void compare(Report& report, const GoldenFile& file, const std::string& name, const Tensor& actual,
             double bound) {
  if (file.has("output." + name)) report.relative(name, actual, file.get("output." + name), bound);
}

// Images to images and back.
void run_autoencoder(const GoldenFile& file, Report& report, bool computed) {
  PublishedTokenizer model(file, computed);
  const double bound = computed ? kComputed : kBound;
  const Tensor images = file.get("input.images").requires_grad_();
  const Pass pass = encode(model, images, {}, file);
  compare(report, file, "encoder_tokens", pass.tokens, bound);
  compare(report, file, "e", pass.e, bound);
  Tensor latents = pass.coded.latents;
  compare(report, file, "latents_unmasked", latents, bound);
  if (model.keep() > 0)
    latents = model.part<Nesting>("nesting").forward(
        latents, torch::full({latents.size(0)}, model.keep(), torch::kInt64));
  compare(report, file, "latents", latents, bound);
  if (file.has("output.indices"))
    report.exact("indices", pass.coded.indices, file.get("output.indices"));
  const Tensor drawn = model.tokenizer().decode(pass.coded.latents, {}, model.keep());
  compare(report, file, "images", drawn, bound);
  if (computed) return;

  compare_losses(file, model, pass.coded.losses, report);
  Tensor total = (drawn * file.get("upstream.images")).sum();
  for (const auto& [name, loss] : pass.coded.losses) total = total + loss;
  total.backward();
  report.by_norm("grad.images", images.grad(), file.get("grad.images"), kRounded);
  model.check_gradients(file, report);

  const torch::NoGradGuard no_grad;
  if (file.has("input.decode_latents"))
    compare(report, file, "decode_images",
            model.tokenizer().decode(file.get("input.decode_latents"), {}), bound);
  if (file.has("input.mask"))
    compare(report, file, "masked_encoder_tokens",
            encode(model, images, mask_of(file), file).tokens, bound);
}

// Rows in the order (row, column, channel), of predictions, as those of patches().
Tensor reordered(const Tensor& rows, PublishedTokenizer& model, const Tensor& images) {
  const int64_t P = model.config().patch_size;
  return model.patches(
      unpatchify(rows, patch_grid(images.size(2), images.size(3), P), P, images.size(1)));
}

Tensor over_hidden(const Tensor& loss, const Mask& mask) {
  const Tensor hidden = mask.hidden.to(loss.device(), torch::kDouble);
  return (loss * hidden).sum() / hidden.sum();
}

}  // namespace

void run_tokenizer(const GoldenFile& file, Report& report) {
  run_autoencoder(file, report, /*computed=*/false);
  if (file.has("weight.posemb")) run_autoencoder(file, report, /*computed=*/true);
}

void run_mae(const GoldenFile& file, Report& report) {
  for (const bool computed : {false, true}) {
    PublishedTokenizer model(file, computed);
    const double bound = computed ? kComputed : kBound;
    const Mask mask = mask_of(file);
    const Tensor images = file.get("input.images").requires_grad_();
    const EncoderOutput encoded =
        model.tokenizer().encoder().forward(model.patches(images), mask, {});
    compare(report, file, "latents", encoded.value, bound);
    compare(report, file, "prefix", encoded.prefix.squeeze(1), bound);
    const Tensor prediction =
        model.tokenizer().decoder().forward(encoded.value, mask, encoded.prefix, {}).value;
    compare(report, file, "prediction", prediction, bound);
    if (computed) continue;

    const Tensor pixels = model.patches(images);
    const Tensor mean = pixels.mean(2, /*keepdim=*/true);
    const Tensor deviation =
        (pixels.var(2, /*unbiased=*/true, /*keepdim=*/true) + kPatchEps).sqrt();
    const Tensor target = (pixels - mean) / deviation;
    report.relative("target", target, reordered(file.get("output.target"), model, images), kBound);
    const Tensor loss =
        over_hidden((reordered(prediction, model, images) - target).square().mean(2), mask);
    scalar(report, "loss", loss, file.get("output.loss"));
    loss.backward();
    report.by_norm("grad.images", images.grad(), file.get("grad.images"), kRounded);
    model.check_gradients(file, report);

    // A pass with a mask of our own: its loss is that of the normalised patches it shows.
    const Context context{
        .training = true, .rng = {.seed = 1, .step = 1}, .samples = torch::arange(images.size(0))};
    const Output out = model.tokenizer().forward(images, context);
    const Tensor shown = (model.patches(out.value) - mean) / deviation;
    scalar(report, "forward", out.losses.at("pixel"),
           over_hidden((shown - target).square().mean(2), model.tokenizer().mask_of(context)));
  }
}

void run_semanticist(const GoldenFile& file, Report& report) {
  PublishedTokenizer model(file);
  const Tensor images = file.get("input.images");
  const Pass pass = encode(model, images, {}, file);
  compare(report, file, "encoder_tokens", pass.tokens, kBound);
  compare(report, file, "e", pass.e, kBound);
  compare(report, file, "latents", pass.coded.latents, kWithoutEps);
  const Tensor kept = file.get("input.kept"), c = pass.coded.latents;
  const Tensor nested = model.part<Nesting>("nesting").forward(c, kept);
  const Tensor null = file.get("weight.dit.null_cond").squeeze(0);
  for (int64_t b = 0; b < c.size(0); ++b) {
    const int64_t k = kept[b].item<int64_t>();
    report.exact("nested", nested[b], torch::cat({c[b].slice(0, 0, k), null.slice(0, k)}));
  }
  report.skip("decoder kind denoise");
}

// The published step draws its mask; the losses of the library's forward are put together here, and
// that of the head on features of another network, which the library does not have.
void run_train_step(const GoldenFile& file, Report& report) {
  PublishedTokenizer model(file);
  const TokenizerConfig& config = model.config();
  const Tensor images = file.get("input.images");
  const Mask mask = mask_of(file);
  const Tensor c = encode(model, images, mask, file).coded.latents;
  compare(report, file, "latents", c, kBound);
  const Tensor drawn = model.tokenizer().decode(c, {});
  compare(report, file, "images", drawn, kBound);
  const Tensor hog = model.part<Decoder>("hog").forward(c, mask, {}, {}).value;
  const Tensor features = model.feature_head().forward(c, mask, {}, {}).value;
  compare(report, file, "head.hog", hog, kRounded);
  compare(report, file, "head.dino", features, kRounded);
  const Tensor target = hog_targets(images, config.patch_size, config.hog.bins, config.hog.cells);
  compare(report, file, "target.hog", target, kRounded);

  const Tensor pixel = (drawn - images).square().mean();
  const Tensor hog_loss = over_hidden((hog - target).square().mean(2), mask);
  const Tensor feature_loss = over_hidden(
      -torch::cosine_similarity(features, file.get("input.target.dino"), 2, kCosineEps), mask);
  scalar(report, "loss.pixel", pixel, file.get("output.loss.pixel"));
  scalar(report, "loss.hog", hog_loss, file.get("output.loss.hog"));
  scalar(report, "loss.dino", feature_loss, file.get("output.loss.dino"));
  (pixel + hog_loss + feature_loss).backward();
  model.check_gradients(file, report);
}

}  // namespace sigma::golden
