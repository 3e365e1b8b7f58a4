// Latents of a data set, encoded once and kept in a safetensors file: L tokens of Z channels an
// image, of unit variance (see LatentNorm in sigma/tokenizer/tokenizer.h).
#pragma once

#include <filesystem>
#include <memory>

#include "sigma/data/dataset.h"

namespace sigma {

/// Tensors "latents" float32 [n,L,Z] and "labels" int64 [n]; the metadata keeps what they were made
/// from.
void write_latents(const std::filesystem::path& path, const torch::Tensor& latents,
                   const torch::Tensor& labels, const std::string& data_sha256,
                   const std::string& weights_sha256);

/// Opens such a file, held in memory. Labels, class names and the description are those of
/// `source`. Errors: kData.
std::unique_ptr<Dataset> open_latents(const std::filesystem::path& path, const DatasetInfo& source);

}  // namespace sigma
