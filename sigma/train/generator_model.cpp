#include "sigma/train/generator_model.h"

#include <torch/types.h>

#include "sigma/base/error.h"
#include "sigma/data/dataset.h"
#include "sigma/io/checkpoint.h"
#include "sigma/io/files.h"
#include "sigma/train/ema.h"
#include "sigma/train/optimizer.h"
#include "sigma/train/run.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr const char* kConfigFile = "config.toml";
constexpr const char* kWeightsFile = "ema-main.safetensors";

LoadedTokenizer load_tokenizer(const std::filesystem::path& folder,
                               const std::filesystem::path& weights, torch::Device device) {
  RunConfig config = load_config_toml(folder / kConfigFile);
  SIGMA_CHECK(kUsage, config.task == "tokenizer",
              "generator.tokenizer: expected a tokenizer run, got a {} ({})", config.task,
              folder.string());
  const SafetensorsFile file(weights);
  LoadedTokenizer out;
  out.folder = folder;
  out.weights_sha256 = sha256_file(weights);
  out.image_shape = image_shape_of(file);
  out.model = std::make_shared<Tokenizer>(config.tokenizer, out.image_shape);
  load_tensors(named_state(*out.model), file);
  out.model->to(device);
  return out;
}

}  // namespace

LoadedTokenizer load_tokenizer_run(const std::string& name, torch::Device device) {
  const std::filesystem::path run = find_run(name);
  const Checkpoint checkpoint = finished_checkpoint(run);
  return load_tokenizer(run, checkpoint.folder / kWeightsFile, device);
}

LoadedTokenizer load_tokenizer_copy(const std::filesystem::path& folder, torch::Device device) {
  return load_tokenizer(folder, folder / kWeightsFile, device);
}

void copy_tokenizer(const LoadedTokenizer& tokenizer, const std::filesystem::path& folder) {
  if (std::filesystem::exists(folder / kWeightsFile)) return;
  std::filesystem::create_directories(folder);
  write_file_atomic(folder / kConfigFile, read_file(tokenizer.folder / kConfigFile));
  const std::filesystem::path weights = finished_checkpoint(tokenizer.folder).folder / kWeightsFile;
  write_file_atomic(folder / kWeightsFile, read_file(weights));
}

GeneratorModel::GeneratorModel(const GeneratorConfig& config,
                               const std::vector<int64_t>& image_shape,
                               std::optional<LoadedTokenizer> tokenizer, torch::Device device)
    : config_(config),
      image_shape_(image_shape),
      sample_shape_(tokenizer ? tokenizer->model->latent_shape() : image_shape),
      tokenizer_(std::move(tokenizer)),
      device_(device),
      path_(config.path),
      objective_(make_objective(config)),
      network_(std::make_shared<DiffusionTransformer>(config.network, sample_shape_)) {
  if (config.normalize == "standardize" && !tokenizer_) {
    pixel_mean_ = network_->register_buffer("pixel_mean", torch::zeros({}, torch::kDouble));
    pixel_std_ = network_->register_buffer("pixel_std", torch::ones({}, torch::kDouble));
  }
  network_->to(device);
}

void GeneratorModel::set_pixel_statistics(double mean, double std) {
  pixel_mean_.fill_(mean);
  pixel_std_.fill_(std);
}

Tensor GeneratorModel::to_data(const Tensor& raw) const {
  const double sd = path_.sigma_data();
  if (tokenizer_) return raw.to(device_) * sd;
  const Tensor images = to_float(raw.to(device_));
  if (!pixel_mean_.defined()) return images;
  return ((images - pixel_mean_) / pixel_std_ * sd).to(torch::kFloat);
}

Tensor GeneratorModel::to_images(const Tensor& data, const Context& context) const {
  const torch::NoGradGuard no_grad;
  const double sd = path_.sigma_data();
  if (tokenizer_) {
    return to_bytes(tokenizer_->model->decode((data / sd).to(torch::kFloat), context)).cpu();
  }
  return to_bytes(pixel_mean_.defined() ? data / sd * pixel_std_ + pixel_mean_ : data).cpu();
}

Tensor GeneratorModel::sample_images(const SamplerConfig& sampler, uint64_t seed,
                                     const Tensor& indices, const Tensor& labels,
                                     torch::ScalarType dtype) {
  Context context{.training = false,
                  .record = false,
                  .dtype = dtype,
                  .rng = {.seed = seed, .step = 0},
                  .samples = indices};
  const Tensor noise = prior_noise(sample_shape_, path_.sigma_data(), seed, indices, device_);
  const Condition condition{labels.defined() ? labels.to(device_) : labels};
  const Tensor x = sample(*objective_, path_, *network_, noise, condition, sampler, context,
                          restart_noise(sample_shape_, path_.sigma_data(), seed, indices, device_));
  return to_images(x, context);
}

}  // namespace sigma
