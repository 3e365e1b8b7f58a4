#include "sigma/data/latents.h"

#include "sigma/base/error.h"
#include "sigma/io/safetensors.h"

namespace sigma {
namespace {

class Latents : public Dataset {
 public:
  Latents(torch::Tensor latents, torch::Tensor labels, DatasetInfo info)
      : latents_(std::move(latents)), labels_(std::move(labels)), info_(std::move(info)) {}
  int64_t size() const override { return latents_.size(0); }
  const DatasetInfo& info() const override { return info_; }
  Sample get(int64_t index) const override {
    return {.data = latents_[index],
            .label = labels_.data_ptr<int64_t>()[index],
            .id = std::to_string(index)};
  }

 private:
  torch::Tensor latents_;
  torch::Tensor labels_;
  DatasetInfo info_;
};

}  // namespace

void write_latents(const std::filesystem::path& path, const torch::Tensor& latents,
                   const torch::Tensor& labels, const std::string& data_sha256,
                   const std::string& weights_sha256) {
  write_safetensors(path, {{"latents", latents}, {"labels", labels}},
                    {{"data_sha256", data_sha256}, {"weights_sha256", weights_sha256}});
}

std::unique_ptr<Dataset> open_latents(const std::filesystem::path& path,
                                      const DatasetInfo& source) {
  const SafetensorsFile file(path);
  torch::Tensor latents = file.load("latents");
  torch::Tensor labels = file.load("labels");
  SIGMA_CHECK(kData, latents.dim() == 3 && latents.scalar_type() == torch::kFloat,
              "latents: expected float32 [n,L,Z], got {} axes ({})", latents.dim(), path.string());
  SIGMA_CHECK(kData,
              labels.dim() == 1 && labels.size(0) == latents.size(0) &&
                  labels.scalar_type() == torch::kInt64,
              "latents: expected {} int64 labels, got {} ({})", latents.size(0), labels.numel(),
              path.string());
  DatasetInfo info = source;
  info.latents = true;
  info.sample_shape = {latents.size(1), latents.size(2)};
  info.description = "latents of " + source.description;
  return std::make_unique<Latents>(std::move(latents), std::move(labels), std::move(info));
}

}  // namespace sigma
