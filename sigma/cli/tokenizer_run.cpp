#include "sigma/cli/tokenizer_run.h"

#include <torch/types.h>

#include <algorithm>

#include "sigma/base/error.h"
#include "sigma/cli/eval_models.h"
#include "sigma/train/ema.h"
#include "sigma/train/open_run.h"
#include "sigma/train/optimizer.h"
#include "sigma/train/run.h"

namespace sigma {

using torch::Tensor;

TokenizerRun open_tokenizer(const TokenizerChoice& choice) {
  const OpenRun run = open_run(choice.run, "tokenizer", choice.ema, choice.device, choice.finished);
  const SafetensorsFile weights = run.weights();
  TokenizerRun out{.folder = run.folder,
                   .config = run.config,
                   .step = run.checkpoint.step(),
                   .run_id = run.id(),
                   .weights_sha256 = run.weights_sha256(),
                   .image_shape = image_shape_of(weights),
                   .model = nullptr,
                   .device = run.device};
  out.model = std::make_shared<Tokenizer>(out.config.tokenizer, out.image_shape);
  load_tensors(named_state(*out.model), weights);
  out.model->to(out.device);
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
    const Samples samples = read_samples(data, first, std::min(batch, count - first));
    use(samples.data, samples.labels);
  }
}

std::vector<int64_t> prefix_lengths(int64_t tokens) {
  std::vector<int64_t> out;
  for (int64_t k = 1; k < tokens; k *= 2) out.push_back(k);
  out.push_back(tokens);
  return out;
}

}  // namespace sigma
