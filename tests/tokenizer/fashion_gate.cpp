// The tokenizers' gate: 300 steps on Fashion-MNIST must reach what they are known to.
//
//   fashion_gate [NAME ...]   exit 0 if all reach their PSNR (of the mean squared error, on 2,000 test
//                             images) and use their codes; without names all of them
#include <fmt/format.h>

#include <algorithm>

#include "sigma/cli/tokenizer_run.h"
#include "sigma/data/dataset.h"
#include "sigma/metrics/image_quality.h"
#include "sigma/tokenizer/vector_quantizer.h"
#include "sigma/train/trainer.h"
#include "tests/testing/scratch.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr int64_t kImages = 2000;

struct Gate {
  std::string name, recipe;
  std::vector<std::string> set;
  double psnr;       // dB
  double usage = 0;  // share of codes
};

const std::vector<Gate> kGates = {
    {"ae", "autoencoder", {}, 14.5},
    {"vq", "autoencoder-vq", {}, 13.3, 0.15},
    {"nested", "semanticist", {}, 14.2},
    {"replace", "autoencoder", {"tokenizer.mask={policy=\"replace\", per=\"step\"}"}, 13.3}};

bool passes(const Gate& gate) {
  const Scratch scratch;
  std::vector<std::string> set = gate.set;
  set.push_back("train.batch=128");
  set.push_back("train.images=38400");
  train(load_run_config(SIGMA_SOURCE_DIR "/recipes/fashion/" + gate.recipe + ".toml", set),
        {.run = scratch.path("run"), .quiet = true});
  const TokenizerRun run = open_tokenizer({.run = scratch.path("run").string(), .device = "auto"});
  DataConfig data = run.config.data;
  data.split = "test";
  ImageQuality quality;
  std::vector<Tensor> indices;
  const torch::NoGradGuard no_grad;
  for_batches(*open_dataset(data), kImages, 500, [&](const Tensor& images, const Tensor&) {
    const Codes codes = encode_images(run, images);
    if (codes.indices.defined()) indices.push_back(codes.indices.flatten().cpu());
    const int64_t pad = data.pad, side = images.size(-1) - 2 * pad;
    const Tensor shown = images.narrow(-2, pad, side).narrow(-1, pad, side);
    quality.add(shown.to(torch::kDouble) / 255,
                decode_latents(run, codes.latents).to(torch::kDouble) / 255);
  });
  double usage = 0;
  if (!indices.empty())
    usage = code_statistics(
                torch::bincount(torch::cat(indices), {}, run.config.tokenizer.bottleneck.codes))
                .usage.item<double>();
  const bool good = quality.psnr_of_mean() >= gate.psnr && usage >= gate.usage;
  fmt::print("{:8} {:.2f} dB (at least {}), codes used {:.2f} (at least {}): {}\n", gate.name,
             quality.psnr_of_mean(), gate.psnr, usage, gate.usage, good ? "passed" : "FAILED");
  std::fflush(stdout);
  return good;
}

}  // namespace
}  // namespace sigma

int main(int argc, char** argv) {
  const std::vector<std::string> names(argv + 1, argv + argc);
  bool all = true;
  for (const auto& gate : sigma::kGates) {
    if (names.empty() || std::find(names.begin(), names.end(), gate.name) != names.end())
      all = sigma::passes(gate) && all;
  }
  return all ? 0 : 1;
}
