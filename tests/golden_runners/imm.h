// The pieces of an IMM loss, from the public functions, for the files that store them.
#pragma once

#include "sigma/generator/objectives/imm.h"
#include "tests/golden_runners/golden.h"

namespace sigma::golden {

struct ImmParts {
  torch::Tensor y, z;                    // [B,...]
  torch::Tensor kappa, weight, mmd;      // [G]
  torch::Tensor yy_sim, zz_sim, yz_sim;  // [G]
  torch::Tensor grad_y;                  // of mean(weight mmd)
};

/// t, r, s [G]; raw outputs of student and target.
ImmParts imm_parts(const ImmConfig& config, const Preconditioner& f, const torch::Tensor& x,
                   const torch::Tensor& eps, const torch::Tensor& t, const torch::Tensor& r,
                   const torch::Tensor& s, const torch::Tensor& G_t, const torch::Tensor& G_r);
/// Compares what the file stores of them, and the loss `out`.
void check_imm_parts(const GoldenFile& file, const ImmConfig& config, const ImmParts& parts,
                     const Output& out, Report& report);

}  // namespace sigma::golden
