// Library objects from a golden file's options.
#pragma once

#include "sigma/generator/objectives/imm.h"
#include "sigma/generator/preconditioner.h"
#include "tests/golden_runners/golden.h"

namespace sigma::golden {

/// t_max absent: the path's own.
Path make_path(const Json& options, const std::string& kind);
Path make_path(const Json& options);
Preconditioner make_preconditioner(const Json& options);
/// Skips mappings, kernels and other options that are not built.
ImmConfig make_imm_config(const Json& options);

}  // namespace sigma::golden
