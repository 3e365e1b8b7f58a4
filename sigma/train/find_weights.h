// Weights by their hash: the checkpoint that made an image, wherever it lies now.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "sigma/io/checkpoint.h"

namespace sigma {

/// The first verified checkpoint whose file `stem`.safetensors has that SHA-256: the folder
/// `recorded` itself, or one in or below the `places` (a checkpoint, a run, a folder of runs). Those
/// that do not exist are passed over. `recorded` comes from a file of anyone's, so nothing below it
/// is searched. Errors: kCheckpoint, naming all of them.
Checkpoint find_weights(const std::string& sha256, const std::string& stem,
                        const std::filesystem::path& recorded,
                        const std::vector<std::filesystem::path>& places);

}  // namespace sigma
