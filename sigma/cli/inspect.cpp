// Looking into attention: the blocks that a patch selects, drawn over the image, and the kernels
// that multi-token attention has learned.
#include <torch/types.h>

#include <algorithm>

#include "sigma/attention/multi_token.h"
#include "sigma/attention/sparse.h"
#include "sigma/base/error.h"
#include "sigma/cli/cli.h"
#include "sigma/data/dataset.h"
#include "sigma/io/files.h"
#include "sigma/io/images.h"
#include "sigma/train/load_generator.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr int64_t kCellWidth = 112;  // pixels that an image is drawn with, about
constexpr int64_t kTapSide = 8;      // pixels of a tap
constexpr double kDark = 0.3;        // of blocks that are not selected
constexpr int64_t kGap = 4;

// RGB pictures of one size in rows.
struct Sheet {
  std::vector<Image> cells;
  int64_t columns = 1;
};

// float [3,Y,X] in [0,1] -> pixels.
Image picture(const Tensor& rgb) { return to_image(rgb.mul(255).round().to(torch::kUInt8)); }

class Attentions {
 public:
  explicit Attentions(DiffusionTransformer& network) {
    for (const auto& item : network.named_modules()) {
      if (auto* sparse = dynamic_cast<SparseAttention*>(item.value().get()))
        sparse_.emplace_back(item.key(), sparse);
      if (auto* multi = dynamic_cast<MultiTokenAttention*>(item.value().get()))
        multi_.emplace_back(item.key(), multi);
    }
  }
  const auto& sparse() const { return sparse_; }
  const auto& multi_token() const { return multi_; }

 private:
  std::vector<std::pair<std::string, SparseAttention*>> sparse_;
  std::vector<std::pair<std::string, MultiTokenAttention*>> multi_;
};

// A grid of patches over a sample [C,Y,X] or [C,F,Y,X], frames side by side.
class PatchView {
 public:
  PatchView(const Tensor& sample, int64_t patch) : patch_(patch) {
    const Tensor clip = sample.dim() == 4 ? sample : sample.unsqueeze(1);
    grid_ = {.frames = clip.size(1), .height = clip.size(2) / patch, .width = clip.size(3) / patch};
    const Tensor grey = clip.to(torch::kFloat).div(255).expand({3, -1, -1, -1});
    zoom_ = std::max<int64_t>(1, kCellWidth / clip.size(3));
    base_ = spread(grey);
  }
  const Grid& grid() const { return grid_; }

  // Selected patches as they are, others dark, the query's patch outlined. selected: bool [N].
  Image draw(const Tensor& selected, int64_t query) const {
    const int64_t side = patch_ * zoom_;
    const auto over_pixels = [&](const Tensor& tokens) {
      return spread(tokens.to(torch::kFloat)
                        .view({1, grid_.frames, grid_.height, grid_.width})
                        .repeat_interleave(patch_, 2)
                        .repeat_interleave(patch_, 3));
    };
    const Tensor light = over_pixels(selected);
    Tensor rgb = base_ * (light * (1 - kDark) + kDark);
    // Selected ground is tinted, or black on black would not show.
    rgb = rgb + light * (1 - base_) * torch::tensor({0.0f, 0.25f, 0.45f}).view({3, 1, 1});
    const int64_t f = query / (grid_.height * grid_.width);
    const int64_t y = query / grid_.width % grid_.height * side;
    const int64_t x = (f * grid_.width + query % grid_.width) * side;
    const Tensor red = torch::tensor({1.0f, 0.2f, 0.1f}).view({3, 1, 1});
    for (const int64_t edge : {int64_t{0}, side - 1}) {
      rgb.narrow(1, y + edge, 1).narrow(2, x, side).copy_(red.expand({3, 1, side}));
      rgb.narrow(1, y, side).narrow(2, x + edge, 1).copy_(red.expand({3, side, 1}));
    }
    return picture(rgb);
  }

 private:
  // [C,F,Y,X] -> [C, Y zoom, F X zoom]
  Tensor spread(const Tensor& clip) const {
    return clip.permute({0, 2, 1, 3})
        .flatten(2)
        .repeat_interleave(zoom_, 1)
        .repeat_interleave(zoom_, 2)
        .clone();
  }
  Grid grid_;
  int64_t patch_, zoom_ = 1;
  Tensor base_;
};

// "row,column" or "frame,row,column" -> a token of the grid.
int64_t query_token(const std::vector<int64_t>& at, const Grid& grid) {
  if (at.empty())
    return (grid.frames / 2 * grid.height + grid.height / 2) * grid.width + grid.width / 2;
  const size_t axes = grid.frames > 1 ? 3 : 2;
  SIGMA_CHECK(kUsage, at.size() == axes, "--query: expected {} numbers, got {}", axes, at.size());
  const int64_t frame = axes == 3 ? at[0] : 0, row = at[axes - 2], column = at[axes - 1];
  SIGMA_CHECK(kUsage,
              frame >= 0 && frame < grid.frames && row >= 0 && row < grid.height && column >= 0 &&
                  column < grid.width,
              "--query: expected a patch of {} x {} x {}, got {}", grid.frames, grid.height,
              grid.width, fmt::join(at, ","));
  return (frame * grid.height + row) * grid.width + column;
}

Sheet draw_lists(const InspectCommand& command, const LoadedGenerator& generator,
                 const Attentions& layers, Json& out) {
  const GeneratorModel& model = *generator.model;
  SIGMA_CHECK(kUsage, model.sample_shape().size() >= 3,
              "{}: expected a generator of images, got one of latents, which have no places",
              generator.run.string());
  const auto dataset = open_dataset(generator.config.data);
  SIGMA_CHECK(kUsage, command.image >= 0 && command.image < dataset->size(),
              "--image: expected [0, {}), got {}", dataset->size(), command.image);
  const Path& path = model.path();
  SIGMA_CHECK(kUsage, command.time >= path.t_min() && command.time <= path.t_max(),
              "--time: expected [{}, {}], got {}", path.t_min(), path.t_max(), command.time);
  const Sample sample = dataset->get(command.image);

  // One pass of the network on the noisy image.
  const torch::NoGradGuard no_grad;
  const Tensor index = torch::full({1}, command.image, torch::kInt64);
  const Tensor data = model.to_data(sample.data.unsqueeze(0)).to(torch::kDouble);
  const Tensor noise =
      prior_noise(model.sample_shape(), path.sigma_data(), 0, index, data.device());
  const auto time = [&](double t) {
    return torch::full({1}, t, torch::TensorOptions(torch::kDouble).device(data.device()));
  };
  const Context context{.training = false,
                        .record = false,
                        .dtype = compute_dtype_of(generator.config.train),
                        .rng = {.seed = 0, .step = 0},
                        .samples = index};
  Condition condition;
  if (model.config().network.num_classes > 0)
    condition.labels = torch::full({1}, sample.label, torch::kInt64).to(data.device());
  generator.model->objective().jump(
      generator.model->network(), path.interpolate(data, noise, time(command.time)),
      time(command.time), time(path.t_min()), condition, {.scale = 1}, context);

  const PatchView view(sample.data, model.config().network.patch_size);
  const int64_t query = query_token(command.query, view.grid());
  Sheet sheet;
  out["image"] = command.image;
  out["time"] = command.time;
  out["query"] = query;
  out["layers"] = Json::array();
  for (const auto& [name, attention] : layers.sparse()) {
    const BlockGeometry& geometry = attention->geometry();
    const Tensor lists = attention->last_lists().cpu()[0];  // [G,R,n]
    const int64_t row = geometry.block_of[geometry.inverse[query].item<int64_t>()].item<int64_t>();
    Json heads = Json::array();
    for (int64_t g = 0; g < lists.size(0); ++g) {
      const Tensor list = lists[g][row].to(torch::kInt64);
      const Tensor chosen = list.masked_select(list >= 0);
      // Of packed rows, then of tokens.
      const Tensor selected = (geometry.block_of.unsqueeze(1) == chosen.unsqueeze(0))
                                  .any(1)
                                  .index_select(0, geometry.inverse);
      sheet.cells.push_back(view.draw(selected, query));
      heads.push_back(std::vector<int64_t>(chosen.data_ptr<int64_t>(),
                                           chosen.data_ptr<int64_t>() + chosen.numel()));
    }
    sheet.columns = lists.size(0);
    out["layers"].push_back({{"layer", name}, {"blocks", heads}});
  }
  return sheet;
}

// Red above 0, blue below, white at 0; rows are query steps, columns key steps.
Image draw_kernel(const Tensor& weights, double largest) {
  const Tensor x = weights.to(torch::kFloat).div(std::max(largest, 1e-12));
  const Tensor up = x.clamp(0, 1), down = (-x).clamp(0, 1);
  const Tensor rgb = torch::stack({1 - down, 1 - up - down, 1 - up});
  return picture(rgb.repeat_interleave(kTapSide, 1).repeat_interleave(kTapSide, 2));
}

Sheet draw_kernels(const Attentions& layers, Json& out) {
  Sheet sheet;
  out["layers"] = Json::array();
  for (const auto& [name, attention] : layers.multi_token()) {
    std::vector<std::pair<std::string, Tensor>> sides;
    if (attention->before().kernel.defined()) sides.emplace_back("pre", attention->before().kernel);
    if (attention->after().kernel.defined()) sides.emplace_back("post", attention->after().kernel);
    for (const auto& [side, kernel] : sides) {
      const Tensor k = kernel.detach().cpu();
      const double largest = k.abs().max().item<double>();
      for (int64_t h = 0; h < k.size(0); ++h) sheet.cells.push_back(draw_kernel(k[h], largest));
      sheet.columns = k.size(0);
      out["layers"].push_back({{"layer", name}, {"side", side}, {"largest_weight", largest}});
    }
  }
  SIGMA_CHECK(kUsage, !sheet.cells.empty(),
              "multi-token attention without kernels: nothing to see");
  // Kernels of several sizes stand on white of the largest.
  int64_t height = 0, width = 0;
  for (const Image& cell : sheet.cells) {
    height = std::max(height, cell.height);
    width = std::max(width, cell.width);
  }
  for (Image& cell : sheet.cells)
    cell = to_image(torch::constant_pad_nd(from_image(cell),
                                           {0, width - cell.width, 0, height - cell.height}, 255));
  return sheet;
}

}  // namespace

CommandResult run_inspect_attention(const InspectCommand& command, const GlobalOptions& global) {
  SIGMA_CHECK(kUsage, std::filesystem::path(command.out).extension() == ".png",
              "-o {}: expected FILE.png", command.out);
  const LoadedGenerator generator = load_generator(command.run, command.ema, global.device);
  const Attentions layers(generator.model->network());
  SIGMA_CHECK(kUsage, !layers.sparse().empty() || !layers.multi_token().empty(),
              "{}: expected attention of kind sparse or multi_token, got dense",
              generator.run.string());
  CommandResult out;
  out.result = {{"run_id", generator.run_id}, {"checkpoint", generator.weights_sha256}};
  const bool lists = !layers.sparse().empty();
  const Sheet sheet =
      lists ? draw_lists(command, generator, layers, out.result) : draw_kernels(layers, out.result);
  write_file_atomic(command.out,
                    encode_png(image_grid(sheet.cells, sheet.columns, kGap), out.result.dump()));
  out.result["file"] = command.out;
  out.text = lists
                 ? fmt::format(
                       "{}: blocks that patch {} of image {} selects (time {}); rows: "
                       "layers, columns: heads\n",
                       command.out, out.result["query"].get<int64_t>(), command.image, command.time)
                 : fmt::format("{}: kernels, red above 0, blue below; columns: heads; rows:\n",
                               command.out);
  for (const Json& layer : out.result["layers"])
    out.text +=
        lists
            ? fmt::format("  {}\n", layer["layer"].get<std::string>())
            : fmt::format("  {} {}, largest weight {:.3f}\n", layer["layer"].get<std::string>(),
                          layer["side"].get<std::string>(), layer["largest_weight"].get<double>());
  return out;
}

}  // namespace sigma
