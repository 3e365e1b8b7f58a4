// What `sigma sample`, its sweeps and `sigma regenerate` share: the images of one pass, each with
// the record that makes it again, and the PNG files that hold them.
#pragma once

#include <torch/types.h>

#include <filesystem>
#include <string>
#include <vector>

#include "sigma/io/image_record.h"
#include "sigma/io/images.h"
#include "sigma/train/load_generator.h"

namespace sigma {

/// One pass of the network: images first, first + 1, ... of a seed.
struct SamplePass {
  SamplerConfig sampler;
  int64_t seed = 0;
  int64_t first = 0;
  int64_t count = 1;
  LabelRuns labels;  // of the images in order; empty: a generator without labels
};

struct SampledImage {
  Image image;
  ImageRecord record;
};

/// The images of a pass.
std::vector<SampledImage> sample_pass(const LoadedGenerator& generator, const SamplePass& pass);
/// The same for any number of images, `batch` a pass. `labels`: one an image, or none at all.
std::vector<SampledImage> sample_all(const LoadedGenerator& generator, const SamplerConfig& sampler,
                                     int64_t seed, int64_t first, int64_t count,
                                     const std::vector<int64_t>& labels, int64_t batch);

/// "0,3,5-7"; "all" or "": all classes, none without classes. Errors: kUsage.
std::vector<int64_t> parse_labels(const std::string& text, int64_t num_classes);

/// One label an image: `count` images in as many equal runs as there are labels; empty if there are
/// none.
std::vector<int64_t> spread_labels(const std::vector<int64_t>& labels, int64_t count);

/// The sampler of the run with each of these settings, guidance by guidance; empty: the run's own.
/// Errors: kUsage (one that does not fit).
std::vector<SamplerConfig> samplers_of(const LoadedGenerator& generator, std::vector<int64_t> steps,
                                       std::vector<double> guidance);

/// What the last bits depend on beside build, device and dtype: "AVX2, 2 threads".
std::string hardware_text(torch::Device device);

/// No picture shows more images: see most_in_picture().
constexpr int64_t kMaxInPicture = 1200;
/// How many images like those of sample_all() a picture shows: the records of all share its chunk
/// of provenance, and a long path or many labels make them long. At most kMaxInPicture.
int64_t most_in_picture(const LoadedGenerator& generator, const SamplerConfig& sampler,
                        int64_t seed, int64_t first, int64_t count,
                        const std::vector<int64_t>& labels, int64_t batch);

/// A picture that shows images, each noted with its place.
class Sheet {
 public:
  Sheet(int64_t height, int64_t width, int64_t channels);
  void add(const SampledImage& sampled, int64_t left, int64_t top, int64_t scale);
  Image& picture() { return picture_; }
  void write(const std::filesystem::path& path) const;

 private:
  Image picture_;
  Json records_ = Json::array();
};

/// White pixels between the images of a grid.
constexpr int64_t kGridGap = 2;
/// Pixels a pixel that an image is shown with in a grid.
int64_t grid_scale(const Image& image);
/// Rows of `columns`, with white between.
Sheet grid_sheet(const std::vector<SampledImage>& images, int64_t columns);
/// The files that write_recorded_png() writes.
std::vector<std::string> recorded_png_files(const std::filesystem::path& path);
/// The PNG, and beside it FILE.png.json: the same record or list, and the file's hash. Errors: kIo.
void write_recorded_png(const std::filesystem::path& path, const Image& image, const Json& records);

}  // namespace sigma
