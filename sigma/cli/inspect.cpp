// Looking into attention: the blocks that a patch selects, drawn over the image, and the kernels
// that multi-token attention has learned.
#include <torch/types.h>

#include <algorithm>

#include "sigma/attention/multi_token.h"
#include "sigma/attention/sparse.h"
#include "sigma/base/error.h"
#include "sigma/cli/cli.h"
#include "sigma/cli/inspect_picture.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr int64_t kCellWidth = 112;  // pixels that an image is drawn with, about
constexpr int64_t kTapSide = 8;      // pixels of a tap
constexpr int64_t kGap = 4;

// RGB pictures of one size in rows.
struct Sheet {
  std::vector<Image> cells;
  int64_t columns = 1;
};

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
  const NoisyImages noisy(generator, generator.config.data);
  noisy.check_image(command.image);
  noisy.check_time(command.time);
  noisy.pass({command.image}, command.time);
  const PatchView view(noisy.dataset().get(command.image).data,
                       generator.config.generator.network.patch_size, kCellWidth);
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
      Tensor rgb = view.lit(selected);
      view.outline(rgb, query);
      sheet.cells.push_back(picture(rgb));
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
  check_picture_name(command.out, global);
  const LoadedGenerator generator = load_generator(command.run, command.ema, global.device);
  const Attentions layers(generator.model->network());
  SIGMA_CHECK(kUsage, !layers.sparse().empty() || !layers.multi_token().empty(),
              "{}: expected attention of kind sparse or multi_token, got dense",
              generator.run.string());
  if (global.dry_run) return planned({command.out}, "a picture of its attention");
  CommandResult out;
  out.result = {{"run_id", generator.run_id}, {"checkpoint", generator.weights_sha256}};
  const bool lists = !layers.sparse().empty();
  const Sheet sheet =
      lists ? draw_lists(command, generator, layers, out.result) : draw_kernels(layers, out.result);
  write_picture(command.out, image_grid(sheet.cells, sheet.columns, kGap), out.result);
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
