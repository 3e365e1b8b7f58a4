// Weights by their hash: the checkpoint that made an image, wherever it lies now.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "sigma/io/checkpoint.h"

namespace sigma {

/// The first verified checkpoint whose file `stem`.safetensors has that SHA-256, in or below the
/// `places` (a checkpoint, a run, a folder of runs; those that do not exist are passed over).
/// Errors: kCheckpoint, naming the places.
Checkpoint find_weights(const std::string& sha256, const std::string& stem,
                        const std::vector<std::filesystem::path>& places);

}  // namespace sigma
