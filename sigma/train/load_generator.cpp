#include "sigma/train/load_generator.h"

#include "sigma/base/error.h"
#include "sigma/io/checkpoint.h"
#include "sigma/train/ema.h"
#include "sigma/train/optimizer.h"
#include "sigma/train/run.h"

namespace sigma {

LoadedGenerator load_generator(const std::string& run, const std::string& ema,
                               const std::string& device) {
  LoadedGenerator out;
  out.run = find_run(run);
  out.config = load_config_toml(out.run / "config.toml");
  SIGMA_CHECK(kUsage, out.config.task == "generator", "{}: expected a generator run, got a {}",
              out.run.string(), out.config.task);
  if (device != "auto") out.config.train.device = device;
  else if (out.config.train.device == "cuda") out.config.train.device = "auto";
  resolve(out.config);
  if (out.config.train.device == "cpu") out.config.train.compute_dtype = "float32";
  const Checkpoint checkpoint = newest_checkpoint(out.run);
  const std::string stem = ema == "none" ? "model" : "ema-" + ema;
  SIGMA_CHECK(kUsage, checkpoint.has(stem), "--ema {}: expected main or none ({})", ema,
              checkpoint.folder.string());
  const SafetensorsFile weights = checkpoint.open(stem);
  const torch::Device on = device_of(out.config.train);
  std::optional<LoadedTokenizer> tokenizer;
  if (!out.config.generator.tokenizer.empty())
    tokenizer = load_tokenizer_copy(out.run / "tokenizer", on);
  out.model = std::make_unique<GeneratorModel>(out.config.generator, image_shape_of(weights),
                                               tokenizer, on);
  load_tensors(named_state(out.model->network()), weights);
  out.run_id = checkpoint.manifest.at("run_id").get<std::string>();
  out.weights_sha256 = checkpoint.file_sha256(stem);
  out.step = checkpoint.step();
  return out;
}

torch::Tensor class_labels(const torch::Tensor& indices, int64_t num_classes) {
  return num_classes > 0 ? indices.remainder(num_classes) : torch::Tensor();
}

}  // namespace sigma
