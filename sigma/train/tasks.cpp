// The three tasks: generator, tokenizer, classifier.
#include <torch/types.h>

#include <cmath>

#include "sigma/base/error.h"
#include "sigma/base/progress.h"
#include "sigma/data/latents.h"
#include "sigma/io/files.h"
#include "sigma/metrics/feature_net.h"
#include "sigma/train/generator_model.h"
#include "sigma/train/task.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr int64_t kEncodeBatch = 256;
constexpr int64_t kStatisticsImages = 10000;

Context evaluation(torch::ScalarType dtype) {
  return {.training = false, .record = false, .dtype = dtype, .rng = {}, .samples = {}};
}

// ---- generator ----

class GeneratorTask : public Task {
 public:
  GeneratorTask(std::unique_ptr<GeneratorModel> model) : model_(std::move(model)) {}
  torch::nn::Module& module() override { return model_->network(); }
  int64_t group_size() const override { return model_->objective().needs().group_size; }
  double flops() const override {
    return model_->network().flops() * model_->objective().passes_per_step();
  }

  Output step(const RawBatch& batch, const Context& context) override {
    const bool labelled = model_->config().network.num_classes > 0;
    const GeneratorBatch data{.data = model_->to_data(batch.data),
                              .labels = labelled ? batch.labels : Tensor()};
    GeneratorBatch on_device = data;
    if (labelled) on_device.labels = batch.labels.to(data.data.device());
    const Draws draws =
        model_->objective().draw(on_device, model_->config().network.num_classes, context);
    return model_->objective().loss(model_->network(), model_->network(), on_device, draws,
                                    context);
  }

  void write_assets(const std::filesystem::path& run) const override {
    if (model_->tokenizer()) copy_tokenizer(*model_->tokenizer(), run / "tokenizer");
  }

 private:
  std::unique_ptr<GeneratorModel> model_;
};

// Where the latents of a data set are kept, beside the tokenizer's run.
std::filesystem::path latents_file(const std::string& data_sha256,
                                   const LoadedTokenizer& tokenizer) {
  return tokenizer.folder / "latents" /
         fmt::format("{}-{}.safetensors", data_sha256.substr(0, 16),
                     tokenizer.weights_sha256.substr(0, 16));
}

// The latents of `data` under `tokenizer`, from their file or encoded now.
std::unique_ptr<Dataset> latents_of(const Dataset& data, const LoadedTokenizer& tokenizer,
                                    torch::Device device, torch::ScalarType dtype) {
  const std::string data_sha256 = data_hash(data);
  const std::filesystem::path cache = latents_file(data_sha256, tokenizer);
  if (!std::filesystem::exists(cache)) {
    print_note(fmt::format("encoding {} images into {}", data.size(), cache.string()));
    const torch::NoGradGuard no_grad;
    std::vector<Tensor> latents, labels;
    for (int64_t first = 0; first < data.size(); first += kEncodeBatch) {
      const int64_t count = std::min(kEncodeBatch, data.size() - first);
      const Samples samples = read_samples(data, first, count);
      labels.push_back(samples.labels);
      latents.push_back(
          tokenizer.model->encode(to_float(samples.data.to(device)), evaluation(dtype))
              .to(torch::kCPU, torch::kFloat));
    }
    std::filesystem::create_directories(cache.parent_path());
    write_latents(cache, torch::cat(latents), torch::cat(labels), data_sha256,
                  tokenizer.weights_sha256);
  }
  return open_latents(cache, data.info());
}

TaskBundle make_generator(const RunConfig& config, bool dry_run) {
  const torch::Device device = device_of(config.train);
  TaskBundle bundle;
  bundle.data = open_dataset(config.data);
  const DatasetInfo info = bundle.data->info();
  bundle.image_shape = info.sample_shape;
  const int64_t classes = config.generator.network.num_classes;
  SIGMA_CHECK(kUsage, classes == 0 || classes == info.num_classes,
              "generator.num_classes: expected {} (the classes of the data) or 0, got {}",
              info.num_classes, classes);
  const SamplerConfig& sampler = config.generator.sampler;
  sampler_times(sampler, Path(config.generator.path));
  SIGMA_CHECK(kUsage, classes > 0 || sampler.guidance.scale == 1,
              "generator.sampler.guidance.scale: expected 1 without labels, got {}",
              sampler.guidance.scale);
  std::optional<LoadedTokenizer> tokenizer;
  if (!config.generator.tokenizer.empty()) {
    tokenizer = load_tokenizer_run(config.generator.tokenizer, device);
    SIGMA_CHECK(kUsage, tokenizer->image_shape == info.sample_shape,
                "generator.tokenizer: expected one for images [{}], it was trained on [{}]",
                fmt::join(info.sample_shape, ","), fmt::join(tokenizer->image_shape, ","));
  }
  auto model =
      std::make_unique<GeneratorModel>(config.generator, info.sample_shape, tokenizer, device);
  initialize(model->network(), static_cast<uint64_t>(config.train.seed));
  if (config.generator.normalize == "standardize" && !tokenizer) {
    const int64_t count = std::min(kStatisticsImages, bundle.data->size());
    const Tensor images = to_float(read_samples(*bundle.data, 0, count).data);
    model->set_pixel_statistics(images.mean().item<double>(), images.std().item<double>());
  }
  if (tokenizer && dry_run) {
    const std::filesystem::path file = latents_file(data_hash(*bundle.data), *tokenizer);
    if (!std::filesystem::exists(file)) bundle.latents_to_write = file;
  } else if (tokenizer) {
    bundle.data = latents_of(*bundle.data, *tokenizer, device, compute_dtype_of(config.train));
  }
  bundle.task = std::make_unique<GeneratorTask>(std::move(model));
  return bundle;
}

// ---- tokenizer ----

class TokenizerTask : public Task {
 public:
  TokenizerTask(const RunConfig& config, const Dataset& data)
      : config_(config), data_(data), model_(config.tokenizer, data.info().sample_shape) {
    initialize(model_, static_cast<uint64_t>(config.train.seed));
    model_.to(device_of(config.train));
  }
  torch::nn::Module& module() override { return model_; }
  double flops() const override { return 3 * model_.flops(); }
  Output step(const RawBatch& batch, const Context& context) override {
    return model_.forward(to_float(batch.data.to(device_of(config_.train))), context);
  }
  std::map<std::string, Tensor> replaced_rows() const override {
    const Tensor rows = model_.bottleneck().restarted();
    if (!rows.defined()) return {};
    return {{"bottleneck.codebook", rows}};
  }
  void finish() override {
    if (!model_.trains_latents()) return;  // their statistics are those the stage started from
    const torch::NoGradGuard no_grad;
    std::vector<Tensor> latents;
    const int64_t total = std::min(config_.tokenizer.latent_norm.images, data_.size());
    for (int64_t first = 0; first < total; first += kEncodeBatch) {
      const Tensor images = read_samples(data_, first, std::min(kEncodeBatch, total - first)).data;
      latents.push_back(model_
                            .encode_raw(to_float(images.to(device_of(config_.train))),
                                        evaluation(compute_dtype_of(config_.train)))
                            .latents);
    }
    model_.fit_latent_norm(latents);
  }

 private:
  RunConfig config_;
  const Dataset& data_;
  Tokenizer model_;
};

// ---- classifier ----

class ClassifierTask : public Task {
 public:
  ClassifierTask(const RunConfig& config, const DatasetInfo& info)
      : device_(device_of(config.train)),
        shape_(info.sample_shape),
        model_(info.sample_shape.at(0), config.classifier.num_classes) {
    SIGMA_CHECK(kUsage, config.classifier.num_classes == info.num_classes,
                "classifier.num_classes: expected {} (the classes of the data), got {}",
                info.num_classes, config.classifier.num_classes);
    initialize(model_, static_cast<uint64_t>(config.train.seed));
    model_.to(device_);
  }
  torch::nn::Module& module() override { return model_; }
  double flops() const override { return 3 * model_.flops(shape_.at(1), shape_.at(2)); }
  Output step(const RawBatch& batch, const Context& context) override {
    const Tensor logits = model_.forward(to_float(batch.data.to(device_))).logits;
    const Tensor labels = batch.labels.to(device_);
    Output out;
    out.losses["cross_entropy"] = torch::cross_entropy_loss(logits, labels);
    if (context.record) {
      out.statistics["accuracy"] = (logits.argmax(1) == labels).to(torch::kFloat).mean();
    }
    return out;
  }

 private:
  torch::Device device_;
  std::vector<int64_t> shape_;
  FeatureNet model_;
};

}  // namespace

TaskBundle make_task(const RunConfig& config, bool dry_run) {
  if (config.task == "generator") return make_generator(config, dry_run);
  TaskBundle bundle;
  bundle.data = open_dataset(config.data);
  bundle.image_shape = bundle.data->info().sample_shape;
  if (config.task == "tokenizer")
    bundle.task = std::make_unique<TokenizerTask>(config, *bundle.data);
  else bundle.task = std::make_unique<ClassifierTask>(config, bundle.data->info());
  return bundle;
}

}  // namespace sigma
