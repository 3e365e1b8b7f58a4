#include "sigma/cli/inspect_picture.h"

#include <torch/types.h>

#include <algorithm>
#include <filesystem>

#include "sigma/base/error.h"
#include "sigma/io/files.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr double kDark = 0.3;  // of patches that are not lit

}  // namespace

Image picture(const Tensor& rgb) { return to_image(rgb.mul(255).round().to(torch::kUInt8)); }

void check_picture_name(const std::string& out, const GlobalOptions& global) {
  SIGMA_CHECK(kUsage, std::filesystem::path(out).extension() == ".png", "-o {}: expected FILE.png",
              out);
  check_output(out, global);
}

void write_picture(const std::string& out, const Image& image, const Json& provenance) {
  write_file_atomic(out, encode_png(image, provenance.dump(-1, ' ', /*ensure_ascii=*/true)));
}

PatchView::PatchView(const Tensor& sample, int64_t patch, int64_t frame_width) : patch_(patch) {
  const Tensor clip = sample.dim() == 4 ? sample : sample.unsqueeze(1);
  grid_ = {.frames = clip.size(1), .height = clip.size(2) / patch, .width = clip.size(3) / patch};
  zoom_ = std::max<int64_t>(1, frame_width / clip.size(3));
  sample_ = spread(clip.to(torch::kFloat).div(255).expand({3, -1, -1, -1}));
}

// [C,F,Y,X] -> [C, Y zoom, F X zoom]
Tensor PatchView::spread(const Tensor& clip) const {
  return clip.permute({0, 2, 1, 3})
      .flatten(2)
      .repeat_interleave(zoom_, 1)
      .repeat_interleave(zoom_, 2)
      .clone();
}

Tensor PatchView::over_pixels(const Tensor& tokens) const {
  return spread(tokens.to(torch::kFloat)
                    .view({1, grid_.frames, grid_.height, grid_.width})
                    .repeat_interleave(patch_, 2)
                    .repeat_interleave(patch_, 3));
}

Tensor PatchView::lit(const Tensor& light) const {
  const Tensor share = over_pixels(light);
  // Lit ground is tinted, or black on black would not show.
  const Tensor tint = torch::tensor({0.0f, 0.25f, 0.45f}).view({3, 1, 1});
  return sample_ * (share * (1 - kDark) + kDark) + share * (1 - sample_) * tint;
}

void PatchView::outline(Tensor& rgb, int64_t token) const {
  const int64_t side = patch_ * zoom_;
  const int64_t frame = token / (grid_.height * grid_.width);
  const int64_t y = token / grid_.width % grid_.height * side;
  const int64_t x = (frame * grid_.width + token % grid_.width) * side;
  const Tensor red = torch::tensor({1.0f, 0.2f, 0.1f}).view({3, 1, 1});
  for (const int64_t edge : {int64_t{0}, side - 1}) {
    rgb.narrow(1, y + edge, 1).narrow(2, x, side).copy_(red.expand({3, 1, side}));
    rgb.narrow(1, y, side).narrow(2, x + edge, 1).copy_(red.expand({3, side, 1}));
  }
}

NoisyImages::NoisyImages(const LoadedGenerator& generator, const DataConfig& data)
    : generator_(generator) {
  SIGMA_CHECK(kUsage, generator.model->sample_shape().size() >= 3,
              "{}: expected a generator of images, got one of latents, which have no places",
              generator.run.string());
  dataset_ = open_dataset(data);
}

void NoisyImages::check_image(int64_t image) const {
  SIGMA_CHECK(kUsage, image >= 0 && image < dataset_->size(), "--image: expected [0, {}), got {}",
              dataset_->size(), image);
}

void NoisyImages::check_time(double time) const {
  const Path& path = generator_.model->path();
  SIGMA_CHECK(kUsage, time >= path.t_min() && time <= path.t_max(),
              "--time: expected [{}, {}], got {}", path.t_min(), path.t_max(), time);
}

Tensor NoisyImages::noised(const std::vector<int64_t>& images, double time) const {
  const GeneratorModel& model = *generator_.model;
  std::vector<Tensor> raw;
  for (const int64_t image : images) raw.push_back(dataset_->get(image).data);
  const Tensor data = model.to_data(torch::stack(raw)).to(torch::kDouble);
  const Tensor noise = prior_noise(model.sample_shape(), model.path().sigma_data(), 0,
                                   torch::tensor(images, torch::kInt64), data.device());
  const Tensor t = torch::full({data.size(0)}, time, data.options());
  return model.path().interpolate(data, noise, t);
}

void NoisyImages::pass(const std::vector<int64_t>& images, double time) const {
  GeneratorModel& model = *generator_.model;
  const torch::NoGradGuard no_grad;
  const Tensor x_t = noised(images, time);
  const Tensor t = torch::full({x_t.size(0)}, time, x_t.options());
  const Tensor s = torch::full({x_t.size(0)}, model.path().t_min(), x_t.options());
  const Context context{.training = false,
                        .record = false,
                        .dtype = compute_dtype_of(generator_.config.train),
                        .rng = {.seed = 0, .step = 0},
                        .samples = torch::tensor(images, torch::kInt64)};
  Condition condition;
  if (model.config().network.num_classes > 0) {
    std::vector<int64_t> labels;
    for (const int64_t image : images) labels.push_back(dataset_->get(image).label);
    condition.labels = torch::tensor(labels, torch::kInt64).to(x_t.device());
  }
  model.objective().jump(model.network(), x_t, t, s, condition, {.scale = 1}, context);
}

}  // namespace sigma
