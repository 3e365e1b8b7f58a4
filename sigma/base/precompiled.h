// Precompiled: what nearly every file includes.
#pragma once
#include <fmt/format.h>
#include <torch/torch.h>

#include <nlohmann/json.hpp>
