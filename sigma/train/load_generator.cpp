#include "sigma/train/load_generator.h"

#include "sigma/base/error.h"
#include "sigma/io/checkpoint.h"
#include "sigma/train/deterministic.h"
#include "sigma/train/ema.h"
#include "sigma/train/optimizer.h"
#include "sigma/train/run.h"

namespace sigma {

namespace {

LoadedGenerator load(std::filesystem::path run, RunConfig config, const Checkpoint& checkpoint,
                     const std::string& ema, const std::string& device) {
  if (device != "auto") config.train.device = device;
  else if (config.train.device == "cuda") config.train.device = "auto";
  resolve(config);
  if (config.train.device == "cpu") config.train.compute_dtype = "float32";
  use_deterministic_kernels();
  const std::string stem = weights_stem(ema);
  SIGMA_CHECK(kUsage, checkpoint.has(stem), "--ema {}: expected main or none ({})", ema,
              checkpoint.folder.string());
  const SafetensorsFile weights = checkpoint.open(stem);
  const torch::Device on = device_of(config.train);
  std::optional<LoadedTokenizer> tokenizer;
  if (!config.generator.tokenizer.empty()) {
    SIGMA_CHECK(kCheckpoint, std::filesystem::exists(run / "tokenizer"),
                "{}: expected the run's copy of its tokenizer, found none",
                (run / "tokenizer").string());
    tokenizer = load_tokenizer_copy(run / "tokenizer", on);
  }
  LoadedGenerator out;
  out.run = std::move(run);
  out.checkpoint = checkpoint.folder;
  out.model = std::make_unique<GeneratorModel>(config.generator, image_shape_of(weights),
                                               std::move(tokenizer), on);
  out.config = std::move(config);
  load_tensors(named_state(out.model->network()), weights);
  out.run_id = checkpoint.manifest.at("run_id").get<std::string>();
  out.weights_sha256 = checkpoint.file_sha256(stem);
  out.ema = ema;
  out.step = checkpoint.step();
  return out;
}

}  // namespace

std::string weights_stem(const std::string& ema) { return ema == "none" ? "model" : "ema-" + ema; }

LoadedGenerator load_generator(const std::string& name, const std::string& ema,
                               const std::string& device) {
  const std::filesystem::path run = find_run(name);
  RunConfig config = load_config_toml(run / "config.toml");
  SIGMA_CHECK(kUsage, config.task == "generator", "{}: expected a generator run, got a {}",
              run.string(), config.task);
  return load(run, std::move(config), newest_checkpoint(run), ema, device);
}

LoadedGenerator load_generator_at(const Checkpoint& checkpoint, const std::string& ema,
                                  const std::string& device) {
  // RUN/checkpoints/step-0000123
  const std::filesystem::path run = checkpoint.folder.parent_path().parent_path();
  return load(run, load_config_toml(checkpoint.folder / "config.toml"), checkpoint, ema, device);
}

torch::Tensor class_labels(const torch::Tensor& indices, int64_t num_classes) {
  return num_classes > 0 ? indices.remainder(num_classes) : torch::Tensor();
}

}  // namespace sigma
