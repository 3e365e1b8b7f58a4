#include "sigma/cli/sample_grid.h"

#include <algorithm>

#include "sigma/base/error.h"
#include "sigma/train/config.h"

namespace sigma {

Sheet sample_grid(const LoadedGenerator& generator) {
  constexpr int64_t kRows = 4, kMaxColumns = 10;
  const int64_t classes = generator.config.generator.network.num_classes;
  const int64_t columns = classes > 0 ? std::min(classes, kMaxColumns) : kMaxColumns;
  const int64_t count = kRows * columns;
  std::vector<int64_t> labels;  // of the columns
  for (int64_t i = 0; classes > 0 && i < columns; ++i) labels.push_back(i);
  const std::vector<SampledImage> images =
      sample_all(generator, generator.config.generator.sampler, kGridSeed, 0, count,
                 spread_labels(labels, count), count);
  // Made column by column, laid out row by row.
  std::vector<SampledImage> rows;
  for (int64_t i = 0; i < count; ++i)
    rows.push_back(images[static_cast<size_t>(i % columns * kRows + i / columns)]);
  return grid_sheet(rows, columns);
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
