// Looking into mixtures of experts: the patches that choose each expert, by layer and noise, drawn
// over images, and how often a place chooses it over many images.
#include <torch/types.h>

#include <algorithm>
#include <cmath>

#include "sigma/base/error.h"
#include "sigma/cli/cli.h"
#include "sigma/cli/inspect_picture.h"
#include "sigma/moe/layer.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr int64_t kImageWidth = 112;     // pixels that an image is drawn with, about
constexpr int64_t kFrameWidth = 56;      // and a frame of a clip
constexpr int64_t kPictureWidth = 2400;  // what does not fit goes to another line
constexpr int64_t kCellGap = 8;
constexpr int64_t kTimeGap = 16;
constexpr int64_t kLayerGap = 32;
constexpr int64_t kGroupGap = 64;
constexpr double kFaint = 0.35;  // light of a patch that chooses with weight 0
constexpr int64_t kMany = 256;   // images that are counted over
constexpr int64_t kBatch = 64;   // of them in a pass
constexpr double kHeat = 2.6;    // of the three channels one after the other
constexpr double kPercent = 100;

struct Layer {
  std::string name;
  MixtureOfExperts* experts;
};

std::vector<Layer> find_layers(const LoadedGenerator& generator) {
  std::vector<Layer> layers;
  for (const auto& item : generator.model->network().named_modules()) {
    if (auto* experts = dynamic_cast<MixtureOfExperts*>(item.value().get()))
      layers.push_back({item.key(), experts});
  }
  SIGMA_CHECK(kUsage, !layers.empty(), "{}: expected an mlp of kind moe, got dense",
              generator.run.string());
  return layers;
}

// Pairs of one layer at one time, summed over images.
struct Choices {
  Tensor count;   // [E,N] double
  Tensor weight;  // [E,N] double, sums of g
  bool tokens_choose = true;
  double tokens = 0;
  double unrouted = 0;  // tokens without an expert

  void add(const Routing& routing, int64_t images) {
    const int64_t E = routing.scores.size(1), T = routing.scores.size(0), N = T / images;
    const Tensor token = routing.pair_token.cpu();
    const Tensor place = routing.pair_expert.cpu() * N + token % N;
    const Tensor g = routing.pair_weight.cpu().to(torch::kDouble);
    const auto sum = [&](Tensor& to, const Tensor& values) {
      const Tensor sums = torch::bincount(place, values, E * N).view({E, N});
      to = to.defined() ? to + sums : sums;
    };
    sum(count, torch::ones_like(g));
    sum(weight, g);
    tokens_choose = routing.pairs_a_token > 0;
    tokens += static_cast<double>(T);
    unrouted += (torch::bincount(token, {}, T) == 0).sum().item<double>();
  }
};

// By layer, then by time.
using Table = std::vector<std::vector<Choices>>;

Table look(const NoisyImages& noisy, const std::vector<Layer>& layers,
           const std::vector<int64_t>& images, const std::vector<double>& times) {
  Table table(layers.size(), std::vector<Choices>(times.size()));
  for (size_t t = 0; t < times.size(); ++t) {
    for (size_t at = 0; at < images.size(); at += kBatch) {
      const std::vector<int64_t> batch(
          images.begin() + static_cast<int64_t>(at),
          images.begin() + static_cast<int64_t>(std::min(at + kBatch, images.size())));
      noisy.pass(batch, times[t]);
      for (size_t l = 0; l < layers.size(); ++l)
        table[l][t].add(layers[l].experts->last_routing(), static_cast<int64_t>(batch.size()));
    }
  }
  return table;
}

// Rows of an image and its experts' cells, under each other.
class Rows {
 public:
  // `gap`: white rows of pixels above, but for the first.
  void add(const Image& image, const std::vector<Image>& experts, int64_t gap) {
    const auto count = static_cast<int64_t>(experts.size());
    const int64_t fit = std::max<int64_t>(1, kPictureWidth / (image.width + kCellGap) - 1);
    const int64_t lines = (count + fit - 1) / fit;
    const int64_t columns = (count + lines - 1) / lines;
    Image blank = image;
    std::fill(blank.pixels.begin(), blank.pixels.end(), uint8_t{255});
    std::vector<Image> cells;
    for (int64_t i = 0; i < lines * columns; ++i) {
      if (i % columns == 0) cells.push_back(i == 0 ? image : blank);
      cells.push_back(i < count ? experts[static_cast<size_t>(i)] : blank);
    }
    const Image row = image_grid(cells, columns + 1, kCellGap);
    if (out_.height == 0) gap = 0;
    out_.width = row.width;
    out_.channels = row.channels;
    out_.height += gap + row.height;
    out_.pixels.resize(out_.pixels.size() + static_cast<size_t>(gap * row.width * row.channels),
                       255);
    out_.pixels.insert(out_.pixels.end(), row.pixels.begin(), row.pixels.end());
  }
  const Image& image() const { return out_; }

 private:
  Image out_;
};

int64_t gap_above(size_t layer, size_t time) {
  return time > 0 ? kTimeGap : layer > 0 ? kLayerGap : kGroupGap;
}

PatchView view_of(const Tensor& sample, const LoadedGenerator& generator) {
  return {sample, generator.config.generator.network.patch_size,
          sample.dim() == 4 ? kFrameWidth : kImageWidth};
}

// One image: dark where a patch does not choose the expert, lighter with the weight where it does.
void draw_image(const NoisyImages& noisy, const LoadedGenerator& generator,
                const std::vector<Layer>& layers, int64_t image, const std::vector<double>& times,
                Rows& rows) {
  const PatchView view = view_of(noisy.dataset().get(image).data, generator);
  const Table table = look(noisy, layers, {image}, times);
  for (size_t l = 0; l < layers.size(); ++l) {
    for (size_t t = 0; t < times.size(); ++t) {
      const Choices& c = table[l][t];
      const Tensor share = c.weight / c.weight.max().clamp_min(1e-12);
      const Tensor light = (c.count > 0) * (kFaint + (1 - kFaint) * share);
      std::vector<Image> cells;
      for (int64_t e = 0; e < light.size(0); ++e) cells.push_back(picture(view.lit(light[e])));
      const Tensor seen = generator.model->to_images(noisy.noised({image}, times[t]), {})[0];
      rows.add(picture(view_of(seen, generator).sample()), cells, gap_above(l, t));
    }
  }
}

// How often a place chooses the expert: 0 black, then red and yellow, `largest` a pale yellow that
// stands out from white gaps.
void draw_frequencies(const PatchView& mean, const Table& table, double images, double largest,
                      Rows& rows) {
  for (size_t l = 0; l < table.size(); ++l) {
    for (size_t t = 0; t < table[l].size(); ++t) {
      const Choices& c = table[l][t];
      std::vector<Image> cells;
      for (int64_t e = 0; e < c.count.size(0); ++e) {
        const Tensor x = mean.over_pixels(kHeat * c.count[e] / (images * largest));
        cells.push_back(picture(torch::cat({x, x - 1, x - 2}).clamp(0, 1)));
      }
      rows.add(picture(mean.sample()), cells, gap_above(l, t));
    }
  }
}

// The statistics of sigma/moe/layer.h, of all pairs together.
Json statistics(const std::string& layer, double time, const Choices& c) {
  const Tensor share = c.count.sum(1) / c.count.sum();
  const auto E = static_cast<double>(share.numel());
  Json out = {
      {"layer", layer},
      {"time", time},
      {"share",
       std::vector<double>(share.data_ptr<double>(), share.data_ptr<double>() + share.numel())},
      {"max_violation", share.max().item<double>() * E - 1},
      {"entropy", -torch::xlogy(share, share).sum().item<double>() / std::max(std::log(E), 1e-9)}};
  if (!c.tokens_choose) out["unrouted"] = c.unrouted / c.tokens;
  return out;
}

std::string statistics_text(const Json& rows) {
  const bool unrouted = rows[0].contains("unrouted");
  std::vector<std::vector<std::string>> table(1, {"layer", "time"});
  for (size_t e = 0; e < rows[0]["share"].size(); ++e) table[0].push_back(fmt::format("{}", e));
  table[0].insert(table[0].end(), {"max violation", "entropy"});
  if (unrouted) table[0].push_back("unrouted tokens");
  for (const Json& row : rows) {
    std::vector<std::string> line = {row["layer"].get<std::string>(),
                                     fmt::format("{:.3g}", row["time"].get<double>())};
    for (const Json& share : row["share"])
      line.push_back(fmt::format("{:.1f}", kPercent * share.get<double>()));
    line.push_back(fmt::format("{:.2f}", row["max_violation"].get<double>()));
    line.push_back(fmt::format("{:.3f}", row["entropy"].get<double>()));
    if (unrouted) line.push_back(fmt::format("{:.1f}", kPercent * row["unrouted"].get<double>()));
    table.push_back(line);
  }
  return text_table(table);
}

// Spread over the data set, which may be in the order of its classes.
std::vector<int64_t> spread_images(int64_t size) {
  const int64_t count = std::min(kMany, size);
  std::vector<int64_t> out;
  for (int64_t i = 0; i < count; ++i) out.push_back(i * size / count);
  return out;
}

}  // namespace

CommandResult run_inspect_routing(const InspectRoutingCommand& command,
                                  const GlobalOptions& global) {
  check_picture_name(command.out, global);
  const LoadedGenerator generator = load_generator(command.run, command.ema, global.device);
  const std::vector<Layer> layers = find_layers(generator);
  const NoisyImages noisy(generator, generator.config.data);
  for (const int64_t image : command.images) noisy.check_image(image);
  for (const double time : command.times) noisy.check_time(time);
  std::vector<double> times = command.times;
  const Path& path = generator.model->path();
  if (times.empty()) {
    for (const double share : {0.1, 0.5, 0.9})
      times.push_back(std::clamp(share * path.range_end(), path.t_min(), path.t_max()));
  }

  if (global.dry_run) return planned({command.out}, "a picture of its routing");
  Rows rows;
  for (const int64_t image : command.images)
    draw_image(noisy, generator, layers, image, times, rows);

  DataConfig data = generator.config.data;
  if (has_test_split(data)) data.split = "test";
  const NoisyImages others(generator, data);
  const std::vector<int64_t> many = spread_images(others.dataset().size());
  const auto images = static_cast<double>(many.size());
  Tensor mean;
  for (const int64_t image : many) {
    const Tensor sample = others.dataset().get(image).data.to(torch::kDouble);
    mean = mean.defined() ? mean + sample : sample;
  }
  const Table table = look(others, layers, many, times);
  double largest = 0;
  for (const auto& layer : table) {
    for (const Choices& c : layer)
      largest = std::max(largest, c.count.max().item<double>() / images);
  }
  draw_frequencies(view_of((mean / images).round(), generator), table, images, largest, rows);

  CommandResult out;
  out.result = {
      {"run_id", generator.run_id},
      {"checkpoint", generator.weights_sha256},
      {"images", command.images},
      {"times", times},
      {"counted", {{"data", others.dataset().info().description}, {"images", many.size()}}},
      {"largest_frequency", largest},
      {"rows", Json::array()}};
  for (size_t l = 0; l < layers.size(); ++l) {
    for (size_t t = 0; t < times.size(); ++t)
      out.result["rows"].push_back(statistics(layers[l].name, times[t], table[l][t]));
  }
  write_picture(command.out, rows.image(), out.result);
  out.result["file"] = command.out;
  out.text = fmt::format(
      "{}: columns: image, then experts; rows: layers, of each the times {:.3g}.\n"
      "Above, {} {}: patches that choose the expert, lighter with the weight.\n"
      "Below, {} of {}: how often a place chooses the expert, brightest = {:.3f}.\n"
      "Pairs of each expert there, in percent:\n{}",
      command.out, fmt::join(times, ", "), command.images.size() == 1 ? "image" : "images",
      fmt::join(command.images, ", "), many.size(), others.dataset().info().description, largest,
      statistics_text(out.result["rows"]));
  return out;
}

}  // namespace sigma
