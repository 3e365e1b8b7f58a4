#include "sigma/cli/sweep.h"

#include <algorithm>
#include <filesystem>
#include <optional>

#include "sigma/base/error.h"
#include "sigma/cli/eval_generator.h"
#include "sigma/cli/eval_record.h"
#include "sigma/cli/inspect_picture.h"
#include "sigma/cli/sampling.h"
#include "sigma/io/image_draw.h"

namespace sigma {
namespace {

constexpr int64_t kUnlabelled = 8;  // images a seed
constexpr int64_t kSpace = 10;      // between grids
constexpr int64_t kMargin = 8;

struct Sweep {
  const SampleCommand& command;
  const LoadedGenerator& generator;
  std::vector<SamplerConfig> samplers;  // guidance by guidance
  std::vector<int64_t> labels;          // of the images of a seed
  int64_t count = 0;                    // images a seed
  int64_t columns = 1;                  // grids a row: numbers of steps

  int64_t seed(int64_t k) const { return command.seed + k; }
};

std::string steps_text(const SamplerConfig& sampler) {
  return fmt::format("steps {}", sampler.steps);
}

std::string guidance_text(const SamplerConfig& sampler) {
  return fmt::format("guidance {}", sampler.guidance.scale);
}

Sweep plan(const SampleCommand& command, const LoadedGenerator& generator) {
  // Rising, for the curves.
  const auto rising = [](auto values) {
    std::sort(values.begin(), values.end());
    values.erase(std::unique(values.begin(), values.end()), values.end());
    return values;
  };
  const std::vector<int64_t> steps = rising(command.steps);
  Sweep sweep{.command = command,
              .generator = generator,
              .samplers = samplers_of(generator, steps, rising(command.guidance))};
  const std::vector<int64_t> labels =
      parse_labels(command.labels, generator.config.generator.network.num_classes);
  sweep.count = command.count;
  if (sweep.count == 0)
    sweep.count = labels.empty() ? kUnlabelled : static_cast<int64_t>(labels.size());
  const auto grids = static_cast<int64_t>(sweep.samplers.size());
  const auto check_count = [&](int64_t in_picture) {
    const int64_t most = in_picture / command.seeds / grids;
    if (sweep.count >= 1 && sweep.count <= most) return;
    throw Error(ErrorKind::kUsage,
                fmt::format("--count: expected in [1, {}] for {} seeds and {} settings, got {}",
                            most, command.seeds, grids, sweep.count),
                "-o DIR/ without --seeds writes single images");
  };
  check_count(kMaxInPicture);
  sweep.labels = spread_labels(labels, sweep.count);
  for (const SamplerConfig& sampler : sweep.samplers) {
    check_count(most_in_picture(generator, sampler, sweep.seed(command.seeds - 1), command.first,
                                sweep.count, sweep.labels, command.batch));
  }
  sweep.columns = std::max<int64_t>(1, static_cast<int64_t>(steps.size()));
  return sweep;
}

Sheet draw_grids(const Sweep& sweep) {
  std::vector<std::vector<std::vector<SampledImage>>> grids;  // setting, seed, image
  for (const SamplerConfig& sampler : sweep.samplers) {
    grids.emplace_back();
    for (int64_t k = 0; k < sweep.command.seeds; ++k)
      grids.back().push_back(sample_all(sweep.generator, sampler, sweep.seed(k),
                                        sweep.command.first, sweep.count, sweep.labels,
                                        sweep.command.batch));
  }
  const Image& one = grids[0][0][0].image;
  const int64_t scale = grid_scale(one);
  const int64_t height = one.height * scale + kGridGap, width = one.width * scale + kGridGap;
  int64_t left = 0, grid_width = sweep.command.seeds * width - kGridGap;
  for (const SamplerConfig& sampler : sweep.samplers) {
    left = std::max(left, text_width(guidance_text(sampler)));
    grid_width = std::max(grid_width, text_width(steps_text(sampler)));
  }
  left += 2 * kMargin;
  const int64_t top = text_height() + 2 * kMargin;
  const int64_t rows = static_cast<int64_t>(grids.size()) / sweep.columns;
  const int64_t grid_height = sweep.count * height - kGridGap;
  Sheet sheet(top + rows * (grid_height + kSpace) - kSpace + kMargin,
              left + sweep.columns * (grid_width + kSpace) - kSpace + kMargin, one.channels);
  for (size_t g = 0; g < grids.size(); ++g) {
    const int64_t row = static_cast<int64_t>(g) / sweep.columns;
    const int64_t column = static_cast<int64_t>(g) % sweep.columns;
    const int64_t y = top + row * (grid_height + kSpace);
    const int64_t x = left + column * (grid_width + kSpace);
    if (row == 0) draw_text(sheet.picture(), steps_text(sweep.samplers[g]), x, kMargin);
    if (column == 0) draw_text(sheet.picture(), guidance_text(sweep.samplers[g]), kMargin, y);
    for (size_t k = 0; k < grids[g].size(); ++k) {
      for (size_t i = 0; i < grids[g][k].size(); ++i)
        sheet.add(grids[g][k][i], x + static_cast<int64_t>(k) * width,
                  y + static_cast<int64_t>(i) * height, scale);
    }
  }
  return sheet;
}

// The results of the seeds as one: mean, sample deviation, and each value.
Json over_seeds(const std::vector<MetricResult>& results) {
  Json out = results[0].to_json();
  out.erase("value");
  std::vector<double> values;
  for (const MetricResult& result : results) values.push_back(result.value);
  const Spread spread = spread_of(values);
  out["values"] = values;
  out["mean"] = spread.mean;
  // One seed says nothing about the spread: null.
  out["std"] = spread.count > 1 ? Json(spread.deviation) : Json();
  return out;
}

Json measure(const Sweep& sweep, GeneratorQuality& quality) {
  Json rows = Json::array();
  for (const SamplerConfig& sampler : sweep.samplers) {
    std::vector<std::vector<MetricResult>> results;  // metric, seed
    for (int64_t k = 0; k < sweep.command.seeds; ++k) {
      const std::vector<MetricResult> one = quality.measure(sampler, sweep.seed(k));
      results.resize(one.size());
      for (size_t m = 0; m < one.size(); ++m) results[m].push_back(one[m]);
    }
    Json row = {
        {"steps", sampler.steps}, {"guidance", sampler.guidance.scale}, {"metrics", Json::array()}};
    for (const auto& metric : results) row["metrics"].push_back(over_seeds(metric));
    rows.push_back(std::move(row));
  }
  return rows;
}

std::string table_of(const Json& rows) {
  std::vector<std::vector<std::string>> table = {{"steps", "guidance"}};
  for (const Json& metric : rows[0]["metrics"])
    table[0].insert(table[0].end(), {metric["name"].get<std::string>(), "std"});
  for (const Json& row : rows) {
    table.push_back({row["steps"].dump(), fmt::format("{}", row["guidance"].get<double>())});
    for (const Json& metric : row["metrics"]) {
      table.back().push_back(number_text(metric["mean"]));
      table.back().push_back(number_text(metric["std"], 2));
    }
  }
  return text_table(table);
}

// A frame a metric, side by side.
Image curves_of(const Sweep& sweep, const Json& rows) {
  std::vector<int64_t> steps;
  for (int64_t c = 0; c < sweep.columns; ++c)
    steps.push_back(sweep.samplers[static_cast<size_t>(c)].steps);
  std::vector<Image> frames;
  for (size_t m = 0; m < rows[0]["metrics"].size(); ++m) {
    std::vector<Curve> curves;
    for (size_t i = 0; i < rows.size(); ++i) {
      if (i % steps.size() == 0) curves.push_back({.name = guidance_text(sweep.samplers[i])});
      const auto values = rows[i]["metrics"][m]["values"].get<std::vector<double>>();
      curves.back().middle.push_back(rows[i]["metrics"][m]["mean"].get<double>());
      curves.back().low.push_back(*std::min_element(values.begin(), values.end()));
      curves.back().high.push_back(*std::max_element(values.begin(), values.end()));
    }
    frames.push_back(
        draw_curves(rows[0]["metrics"][m]["name"].get<std::string>(), "steps", steps, curves));
  }
  return image_grid(frames, static_cast<int64_t>(frames.size()), 0);
}

}  // namespace

CommandResult run_sweep(const SampleCommand& command, const GlobalOptions& global) {
  check_picture_name(command.out, global);
  SIGMA_CHECK(kUsage, command.samples == -1 || command.samples == 0 || command.samples >= 2,
              "--samples: expected 0 (nothing is measured) or at least 2, got {}", command.samples);
  check_metric_names(command.metrics, generator_metrics());
  const std::filesystem::path out_path = command.out;
  const std::string curve =
      (out_path.parent_path() / (out_path.stem().string() + "-curve.png")).string();
  const bool measured = command.samples != 0;
  std::vector<std::string> files = recorded_png_files(out_path);
  if (measured) files.push_back(curve);
  for (const std::string& file : files) check_output(file, global);

  const LoadedGenerator generator = load_generator(command.run, command.ema, global.device);
  const Sweep sweep = plan(command, generator);
  const int64_t samples =
      command.samples > 0 ? command.samples : generator.config.metrics.n_samples;
  const auto settings = static_cast<int64_t>(sweep.samplers.size());
  std::optional<GeneratorQuality> quality;
  if (measured) quality.emplace(generator, command.metrics, samples, command.batch, global.quiet);
  if (global.dry_run) {
    return planned(files,
                   fmt::format("{} settings, {} seeds, {} images of each; {} measured of each",
                               settings, command.seeds, sweep.count, measured ? samples : 0),
                   {{"images", settings * command.seeds * sweep.count},
                    {"settings", settings},
                    {"seeds", command.seeds},
                    {"samples", measured ? samples : 0}});
  }
  CommandResult out;
  out.result = {{"run", generator.run.string()},
                {"step", generator.step},
                {"weights_sha256", generator.weights_sha256},
                {"ema", generator.ema},
                {"seeds", Json::array()},
                {"files", files}};
  for (int64_t k = 0; k < command.seeds; ++k) out.result["seeds"].push_back(sweep.seed(k));
  draw_grids(sweep).write(out_path);
  out.text = fmt::format("{}: rows guidance, columns steps; in each grid {} seeds in columns\n",
                         command.out, command.seeds);
  if (!quality) return out;
  out.result["rows"] = measure(sweep, *quality);
  quality.reset();  // ends its line of progress
  write_picture(curve, curves_of(sweep, out.result["rows"]),
                {{"checkpoint", generator.weights_sha256}, {"rows", out.result["rows"]}});
  out.text += fmt::format("{}: metrics against steps\n", curve) + table_of(out.result["rows"]);
  out.text +=
      fmt::format("mean and deviation over {} seeds, {} samples each\n", command.seeds, samples);
  return out;
}

}  // namespace sigma
