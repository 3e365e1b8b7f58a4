// `sigma eval` of the two models that are not generators.
#pragma once

#include <torch/types.h>

#include <filesystem>

#include "sigma/cli/cli.h"

namespace sigma {

/// Images [N,C,Y,X] without the `pad` pixels that data.pad added on each side.
torch::Tensor crop_padding(const torch::Tensor& images, int64_t pad);

/// Quality of reconstructions, probes, codes, prefixes: eval_tokenizer.cpp.
CommandResult eval_tokenizer(const EvalCommand& command, const GlobalOptions& global,
                             const std::filesystem::path& run);
/// Accuracy on the test images; with --write-asset the file that load_feature_extractor() reads.
CommandResult eval_classifier(const EvalCommand& command, const GlobalOptions& global,
                              const std::filesystem::path& run);

}  // namespace sigma
