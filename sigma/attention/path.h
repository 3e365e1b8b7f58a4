// Which path of an attention operator runs on a GPU: the one place that decides.
//
//   hopper      kernels for compute capability 9.0
//   portable    kernels for 8.0 and later, or torch's
//   reference   the definition
//
// SIGMA_ATTENTION=reference, portable or hopper names the fastest one that may run, of all
// operators. What does not take an input leaves it to the next slower path, which is logged once a
// reason.
#pragma once

#include <torch/types.h>

#include <functional>
#include <string>

namespace sigma {

enum class AttentionPath { kReference, kPortable, kHopper };  // slower ones first

/// The fastest path that an operator with kernels up to `fastest` may take. `refused(path)`: why
/// the kernels of a path do not take the input; empty: they do. Errors: kUsage (another name in
/// SIGMA_ATTENTION).
AttentionPath attention_path(const std::string& op, AttentionPath fastest,
                             const std::function<std::string(AttentionPath)>& refused);

/// What the GPU of `x` has kernels for.
AttentionPath device_path(const torch::Tensor& x);

/// Logs, the first time, that `op` does not run as `from` because of `why`.
void log_fall_back(const std::string& op, AttentionPath from, const std::string& why);

}  // namespace sigma
