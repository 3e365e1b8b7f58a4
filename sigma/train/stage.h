// A run that goes on from another: its weights are the start (`train.start_from`), and a part of
// them is trained (`train.only`). MAETok's decoder fine-tuning with the encoder frozen is such a run
// (arXiv 2502.03444, section 3.3).
//
// Frozen parameters have no gradient and are not the optimizer's: they, and their average, keep
// their bits. Tensors that the other run has and this one lacks (a head that is not wanted any more)
// are left behind; the other way round is an error.
#pragma once

#include <torch/nn/module.h>

#include "sigma/io/safetensors.h"
#include "sigma/train/config.h"

namespace sigma {

/// Copies the averaged weights of `start_from`, if any. Errors: kUsage, kCheckpoint (no such run;
/// tensors that are missing or of another shape, all listed).
void load_start(torch::nn::Module& module, const TrainConfig& config);
/// The parameters that are trained; the others are frozen. Errors: kUsage (a part that no parameter
/// has).
NamedTensors trained_parameters(torch::nn::Module& module, const TrainConfig& config);

}  // namespace sigma
