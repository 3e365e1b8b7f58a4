#include "sigma/cli/sample_grid.h"

#include <algorithm>

#include "sigma/base/error.h"
#include "sigma/train/config.h"

namespace sigma {

Sheet sample_grid(const LoadedGenerator& generator) {
  constexpr int64_t kRows = 4, kMaxColumns = 10, kGap = 2;
  const int64_t classes = generator.config.generator.network.num_classes;
  const int64_t columns = classes > 0 ? std::min(classes, kMaxColumns) : kMaxColumns;
  const int64_t count = kRows * columns;
  std::vector<int64_t> labels;
  for (int64_t i = 0; classes > 0 && i < count; ++i) labels.push_back(i / kRows);
  const std::vector<SampledImage> images =
      sample_all(generator, generator.config.generator.sampler, kGridSeed, 0, count, labels, count);
  const Image& one = images[0].image;
  const int64_t scale = grid_scale(one);
  const int64_t height = one.height * scale + kGap, width = one.width * scale + kGap;
  Sheet sheet(kRows * height - kGap, columns * width - kGap, one.channels);
  for (int64_t i = 0; i < count; ++i)
    sheet.add(images[static_cast<size_t>(i)], i / kRows * width, i % kRows * height, scale);
  return sheet;
}

std::filesystem::path write_sample_grid(const std::filesystem::path& checkpoint) {
  if (load_config_toml(checkpoint / "config.toml").task != "generator") return {};
  const LoadedGenerator generator =
      load_generator_at(verify_checkpoint(checkpoint, /*check_hashes=*/false), "main", "auto");
  const std::filesystem::path folder = generator.run / "samples";
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  SIGMA_CHECK(kIo, !error, "{}: cannot be created: {}", folder.string(), error.message());
  const std::filesystem::path file = folder / fmt::format("step-{:07}.png", generator.step);
  sample_grid(generator).write(file);
  return file;
}

}  // namespace sigma
