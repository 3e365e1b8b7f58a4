#include "sigma/train/load_generator.h"

#include "sigma/base/error.h"
#include "sigma/train/deterministic.h"
#include "sigma/train/ema.h"
#include "sigma/train/open_run.h"
#include "sigma/train/optimizer.h"
#include "sigma/train/run.h"

namespace sigma {
namespace {

LoadedGenerator load(OpenRun run, const std::string& ema) {
  use_deterministic_kernels();
  const SafetensorsFile weights = run.weights();
  std::optional<LoadedTokenizer> tokenizer;
  if (!run.config.generator.tokenizer.empty()) {
    const std::filesystem::path copy = run.folder / "tokenizer";
    SIGMA_CHECK(kCheckpoint, std::filesystem::exists(copy),
                "{}: expected the run's copy of its tokenizer, found none", copy.string());
    tokenizer = load_tokenizer_copy(copy, run.device);
  }
  LoadedGenerator out;
  out.run = run.folder;
  out.checkpoint = run.checkpoint.folder;
  out.model = std::make_unique<GeneratorModel>(run.config.generator, image_shape_of(weights),
                                               std::move(tokenizer), run.device);
  load_tensors(named_state(out.model->network()), weights);
  out.run_id = run.id();
  out.weights_sha256 = run.weights_sha256();
  out.ema = ema;
  out.step = run.checkpoint.step();
  out.config = std::move(run.config);
  return out;
}

}  // namespace

LoadedGenerator load_generator(const std::string& name, const std::string& ema,
                               const std::string& device) {
  return load(open_run(name, "generator", ema, device), ema);
}

LoadedGenerator load_generator_at(const Checkpoint& checkpoint, const std::string& ema,
                                  const std::string& device) {
  // RUN/checkpoints/step-0000123
  const std::filesystem::path run = checkpoint.folder.parent_path().parent_path();
  return load(
      open_run(run, load_config_toml(checkpoint.folder / "config.toml"), checkpoint, ema, device),
      ema);
}

torch::Tensor class_labels(const torch::Tensor& indices, int64_t num_classes) {
  return num_classes > 0 ? indices.remainder(num_classes) : torch::Tensor();
}

}  // namespace sigma
