// `sigma eval` of a tokenizer: how near its reconstructions of the test images are, what a linear
// map reads from its latents, how it uses its codes, and what its prefixes say; PCA of as many
// floats stands beside.
#include <torch/types.h>

#include <algorithm>
#include <cmath>

#include "sigma/base/error.h"
#include "sigma/base/progress.h"
#include "sigma/cli/eval_models.h"
#include "sigma/cli/tokenizer_metrics.h"
#include "sigma/cli/tokenizer_run.h"
#include "sigma/metrics/feature_net.h"
#include "sigma/metrics/linear_probe.h"
#include "sigma/metrics/metric.h"
#include "sigma/tokenizer/vector_quantizer.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr const char* kExtractor = "fd_fashion_cnn";
constexpr int64_t kMaxFeatures = 4096;  // of a probe: more latents are averaged over their tokens

struct Split {
  std::string name;  // "fashion test"
  std::unique_ptr<Dataset> data;
  int64_t count = 0;
  Tensor features;  // float32 [n,F], of the latents
  Tensor pixels;    // float32 [n,C,y,x] in [0,1], without padding
  Tensor labels;    // int64 [n]
};

Tensor in_unit_range(const Tensor& bytes) { return bytes.to(torch::kDouble).div(255); }

class TokenizerEvaluation {
 public:
  TokenizerEvaluation(const EvalCommand& command, const GlobalOptions& global,
                      const std::filesystem::path& folder)
      : command_(command),
        run_(open_tokenizer({.run = folder.string(), .ema = command.ema, .device = global.device})),
        progress_(run_.config.log.interval, global.quiet) {
    // Without a test split the training images stand in, for all but the probes.
    test_ = open_split(has_test_split(run_.config.data) ? "test" : "train");
    if (command.count > 0) test_.count = std::min(test_.count, command.count);
    const std::vector<int64_t> latents = run_.model->latent_shape();
    const int64_t pad = 2 * run_.config.data.pad;
    const std::vector<int64_t>& padded = run_.image_shape;
    images_ = {.shape = {padded[0], padded[1] - pad, padded[2] - pad},
               .latent_numbers = latents[0] * latents[1],
               .classes = test_.data->info().num_classes};
    choice_ = choose_tokenizer_metrics(run_.config, images_, command.metrics);
    decodes_ = wants("psnr_of_mean") || wants("psnr_mean_image") || wants("ssim_gauss11") ||
               wants("rfd_fashion_cnn");
    if (wants("prefixes")) lengths_ = prefix_lengths(latents[0]);
    prefix_quality_.resize(lengths_.size());
    keeps_pixels_ = wants("linear_probe_pca") || wants("linear_probe_pixels") ||
                    (wants("prefixes") && images_.numbers() <= kMaxPcaNumbers);
  }

  CommandResult result() {
    if (wants("rfd_fashion_cnn")) extractor_ = load_feature_extractor(kExtractor, run_.device);
    look_at_test();
    if (keeps_pixels_ || wants("linear_probe")) look_at_training();
    images();
    probe();
    codes();

    CommandResult out;
    out.result = {{"run", run_.folder.string()}, {"step", run_.step},
                  {"run_id", run_.run_id},       {"weights_sha256", run_.weights_sha256},
                  {"ema", command_.ema},         {"metrics", Json::array()}};
    std::vector<std::vector<std::string>> table = {{"metric", "value", "images", "of"}};
    for (const MetricResult& m : metrics_) {
      out.result["metrics"].push_back(m.to_json());
      table.push_back({m.name, fmt::format("{:.4g}", m.value), fmt::format("{}", m.n_samples),
                       m.extractor.empty() ? test_.name : m.extractor});
    }
    if (!metrics_.empty()) out.text = text_table(table);
    if (wants("prefixes")) {
      out.result["prefixes"] = prefixes();
      out.text += (out.text.empty() ? "" : "\n") + prefix_text(out.result["prefixes"]);
    }
    if (!choice_.obstacles.empty()) out.result["not_measured"] = choice_.obstacles;
    for (const auto& [name, reason] : choice_.obstacles)
      out.text += fmt::format("not measured: {} ({})\n", name, reason);
    progress_.end_line();
    return out;
  }

 private:
  bool wants(const std::string& name) const { return choice_.wanted.contains(name); }

  Split open_split(const std::string& name) const {
    DataConfig data = run_.config.data;
    data.split = name;
    Split out{.name = data.kind + " " + name,
              .data = open_dataset(data),
              .features = {},
              .pixels = {},
              .labels = {}};
    out.count = out.data->size();
    return out;
  }

  Tensor features_of(const Tensor& latents) const {
    return (images_.latent_numbers <= kMaxFeatures ? latents.flatten(1) : latents.mean(1)).cpu();
  }

  // Visits a split, keeps what probes need, and hands on what `use` is for.
  void visit(Split& split, bool encode,
             const std::function<void(const Tensor& images, const Codes& codes)>& use) {
    std::vector<Tensor> features, pixels, labels;
    int64_t done = 0;
    for_batches(*split.data, split.count, command_.batch, [&](const Tensor& raw, const Tensor& y) {
      const Tensor images = crop_padding(raw, run_.config.data.pad);
      labels.push_back(y);
      if (keeps_pixels_) pixels.push_back(images.to(torch::kFloat).div(255));
      if (encode) {
        const Codes codes = encode_images(run_, raw);
        if (wants("linear_probe")) features.push_back(features_of(codes.latents));
        use(images, codes);
      }
      done += images.size(0);
      progress_.show(fmt::format("{}: {}/{}", split.name, done, split.count));
    });
    split.labels = torch::cat(labels);
    if (keeps_pixels_) split.pixels = torch::cat(pixels);
    if (encode && wants("linear_probe")) split.features = torch::cat(features);
  }

  void look_at_test() {
    const int64_t V = run_.config.tokenizer.bottleneck.codes;
    code_counts_ = torch::zeros({V}, torch::kInt64);
    visit(test_, /*encode=*/true, [&](const Tensor& images, const Codes& codes) {
      if (codes.indices.defined())
        code_counts_ += torch::bincount(codes.indices.flatten().cpu(), {}, V);
      const Tensor originals = in_unit_range(images);
      for (size_t i = 0; i < lengths_.size(); ++i) {
        const Tensor decoded = decode_latents(run_, codes.latents, lengths_[i]);
        prefix_quality_[i].add(originals, in_unit_range(decoded));
      }
      if (!decodes_) return;
      const Tensor decoded = decode_latents(run_, codes.latents);
      quality_.add(originals, in_unit_range(decoded));
      if (extractor_.net)
        decoded_features_.push_back(extract(*extractor_.net, decoded, run_.device).features);
    });
  }

  void look_at_training() {
    train_ = open_split("train");
    visit(train_, wants("linear_probe"), [](const Tensor&, const Codes&) {});
    if (!keeps_pixels_) return;
    int64_t components = wants("linear_probe_pca") ? images_.latent_numbers : 0;
    for (const int64_t k : lengths_) components = std::max(components, prefix_floats(k));
    components = std::min(components, images_.numbers());
    if (components == 0) return;
    progress_.show(fmt::format("PCA of {} floats", components));
    pca_ = pca_features(train_.pixels.flatten(1), components);
  }

  void add(const std::string& name, double value) {
    metrics_.push_back({.name = name,
                        .value = value,
                        .extractor = "",
                        .extractor_sha256 = "",
                        .reference = test_.name,
                        .n_reference = test_.count,
                        .n_samples = test_.count,
                        .floor = std::nan("")});
  }

  void images() {
    if (wants("psnr_of_mean")) add("psnr_of_mean", quality_.psnr_of_mean());
    if (wants("psnr_mean_image")) add("psnr_mean_image", quality_.psnr_mean_image());
    if (wants("ssim_gauss11")) add("ssim_gauss11", *quality_.ssim());
    if (!wants("rfd_fashion_cnn")) return;
    const FeatureStatistics statistics = feature_statistics(torch::cat(decoded_features_));
    metrics_.push_back({.name = "rfd_fashion_cnn",
                        .value = frechet_distance(statistics, extractor_.reference),
                        .extractor = extractor_.name,
                        .extractor_sha256 = extractor_.sha256,
                        .reference = extractor_.reference_name,
                        .n_reference = extractor_.reference.count,
                        .n_samples = test_.count,
                        .floor = extractor_.floor});
  }

  void codes() {
    const CodeStatistics statistics = code_statistics(code_counts_);
    if (wants("code_usage")) add("code_usage", statistics.usage.item<double>());
    if (wants("code_perplexity")) add("code_perplexity", statistics.perplexity.item<double>());
  }

  void add_probe(const std::string& name, const std::string& what, const Tensor& train,
                 const Tensor& test) {
    progress_.show(name);
    const int64_t classes = test_.data->info().num_classes;
    metrics_.push_back(
        {.name = name,
         .value = linear_probe_accuracy({train, train_.labels}, {test, test_.labels}, classes),
         .extractor = fmt::format("{}, {} floats", what, train.size(1)),
         .extractor_sha256 = "",
         .reference = train_.name,
         .n_reference = train_.count,
         .n_samples = test_.count,
         .floor = std::nan("")});
  }

  void probe() {
    if (wants("linear_probe")) {
      add_probe("linear_probe",
                images_.latent_numbers <= kMaxFeatures ? "latents" : "mean of the latent tokens",
                train_.features, test_.features);
    }
    if (wants("linear_probe_pca")) {
      const auto encode = [&](const Tensor& pixels) {
        return pca_.encode(pixels.flatten(1)).narrow(1, 0, images_.latent_numbers);
      };
      add_probe("linear_probe_pca", "PCA", encode(train_.pixels), encode(test_.pixels));
    }
    if (wants("linear_probe_pixels"))
      add_probe("linear_probe_pixels", "pixels", train_.pixels.flatten(1), test_.pixels.flatten(1));
  }

  int64_t prefix_floats(int64_t tokens) const { return tokens * run_.model->latent_shape()[1]; }

  static Json quality_json(const ImageQuality& quality) {
    Json out = {{"psnr_of_mean", quality.psnr_of_mean()},
                {"psnr_mean_image", quality.psnr_mean_image()}};
    if (quality.ssim()) out["ssim_gauss11"] = *quality.ssim();
    return out;
  }

  Json prefixes() {
    Json rows = Json::array();
    for (size_t i = 0; i < lengths_.size(); ++i) {
      const int64_t floats = prefix_floats(lengths_[i]);
      Json row = {{"keep", lengths_[i]}, {"floats", floats}};
      row.update(quality_json(prefix_quality_[i]));
      if (keeps_pixels_ && floats <= images_.numbers()) {
        row["pca"] = quality_json(pca_quality(pca_, test_.pixels, floats));
      }
      rows.push_back(std::move(row));
    }
    return rows;
  }

  static std::string prefix_text(const Json& rows) {
    const std::vector<const char*> columns = {"psnr_of_mean", "psnr_mean_image", "ssim_gauss11"};
    std::vector<std::vector<std::string>> table = {{"keep", "floats"}};
    for (const char* name : columns) {
      if (!rows[0].contains(name)) continue;
      table[0].emplace_back(name);
      table[0].emplace_back("of PCA");
    }
    const auto text = [](const Json& from, const char* name) {
      return from.contains(name) ? fmt::format("{:.4g}", from[name].get<double>()) : "-";
    };
    for (const Json& row : rows) {
      table.push_back({row["keep"].dump(), row["floats"].dump()});
      for (const char* name : columns) {
        if (!row.contains(name)) continue;
        table.back().push_back(text(row, name));
        table.back().push_back(text(row.value("pca", Json::object()), name));
      }
    }
    return text_table(table);
  }

  const EvalCommand& command_;
  TokenizerRun run_;
  Progress progress_;
  TokenizerImages images_;
  MetricChoice choice_;
  bool decodes_ = false, keeps_pixels_ = false;
  Split test_, train_;
  FeatureExtractor extractor_;
  ImageQuality quality_;
  std::vector<int64_t> lengths_;
  std::vector<ImageQuality> prefix_quality_;
  std::vector<Tensor> decoded_features_;
  Tensor code_counts_;
  Pca pca_;
  std::vector<MetricResult> metrics_;
};

}  // namespace

CommandResult eval_tokenizer(const EvalCommand& command, const GlobalOptions& global,
                             const std::filesystem::path& run) {
  TokenizerEvaluation evaluation(command, global, run);
  if (global.dry_run) return planned({(run / "log.jsonl").string()}, "metrics of a tokenizer");
  return evaluation.result();
}

}  // namespace sigma
