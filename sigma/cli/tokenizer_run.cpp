#include "sigma/cli/tokenizer_run.h"

#include <torch/types.h>

#include <algorithm>

#include "sigma/base/error.h"
#include "sigma/cli/eval_models.h"
#include "sigma/train/ema.h"
#include "sigma/train/optimizer.h"
#include "sigma/train/run.h"

namespace sigma {

using torch::Tensor;

TokenizerRun open_tokenizer(const TokenizerChoice& choice) {
  TokenizerRun out;
  out.folder = find_run(choice.run);
  out.config = load_config_toml(out.folder / "config.toml");
  SIGMA_CHECK(kUsage, out.config.task == "tokenizer", "{}: expected a tokenizer run, got a {}",
              out.folder.string(), out.config.task);
  out.config.train.device = choice.device;
  resolve(out.config);
  out.device = device_of(out.config.train);
  const Checkpoint checkpoint =
      choice.finished ? finished_checkpoint(out.folder) : newest_checkpoint(out.folder);
  const std::string stem = choice.ema == "none" ? "model" : "ema-" + choice.ema;
  SIGMA_CHECK(kUsage, checkpoint.has(stem), "--ema {}: expected main or none ({})", choice.ema,
              checkpoint.folder.string());
  const SafetensorsFile weights = checkpoint.open(stem);
  out.image_shape = image_shape_of(weights);
  out.model = std::make_shared<Tokenizer>(out.config.tokenizer, out.image_shape);
  load_tensors(named_state(*out.model), weights);
  out.model->to(out.device);
  out.step = checkpoint.step();
  out.run_id = checkpoint.manifest.at("run_id").get<std::string>();
  out.weights_sha256 = checkpoint.file_sha256(stem);
  return out;
}

Context evaluation_context() {
  return {.training = false, .record = false, .dtype = torch::kFloat, .rng = {}, .samples = {}};
}

Codes encode_images(const TokenizerRun& run, const Tensor& images) {
  const torch::NoGradGuard no_grad;
  const Tensor x = to_float(images.to(run.device));
  if (run.config.tokenizer.bottleneck.kind != "vq")
    return {.latents = run.model->encode(x, evaluation_context()), .indices = {}};
  const Tensor indices = run.model->encode_raw(x, evaluation_context()).indices;
  return {.latents = run.model->latents_of(indices), .indices = indices};
}

Tensor decode_latents(const TokenizerRun& run, const Tensor& latents, int64_t keep) {
  const torch::NoGradGuard no_grad;
  const Tensor images = run.model->decode(latents.to(run.device), evaluation_context(), keep);
  return crop_padding(to_bytes(images).cpu(), run.config.data.pad);
}

void for_batches(const Dataset& data, int64_t count, int64_t batch,
                 const std::function<void(const Tensor&, const Tensor&)>& use) {
  for (int64_t first = 0; first < count; first += batch) {
    std::vector<Tensor> images;
    std::vector<int64_t> labels;
    for (int64_t i = first; i < std::min(count, first + batch); ++i) {
      const Sample sample = data.get(i);
      images.push_back(sample.data);
      labels.push_back(sample.label);
    }
    use(torch::stack(images), torch::tensor(labels, torch::kInt64));
  }
}

std::vector<int64_t> prefix_lengths(int64_t tokens) {
  std::vector<int64_t> out;
  for (int64_t k = 1; k < tokens; k *= 2) out.push_back(k);
  out.push_back(tokens);
  return out;
}

}  // namespace sigma
