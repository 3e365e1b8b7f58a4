// Precompiled: what nearly every file includes. Not torch/torch.h: its data sets and script types
// would be instantiated again in every file.
#pragma once
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/autograd.h>
#include <torch/nn/module.h>
#include <torch/types.h>

#include <nlohmann/json.hpp>
