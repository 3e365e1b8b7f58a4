// Multi-token attention by wider heads, for fast attention kernels (which keep no score maps where
// they take the width and dtype): full attention on any device.
//
//   A  before:  S'[i,j] = scale sum_a q_{i-a} . (sum_b theta[a,b] k_{j-b}): attention of width
//      |a| D; heads that mix stand side by side, queries times w[to,from]: width c |a| D
//   B  after:   out_i = sum_a (P V_a)_{i-a},  V_a[m] = sum_b phi[a,b] v_{m+b}: values of width
//      |a| Dv, then a sum of shifted outputs; a head that mixes carries the values of its group
//
// 2 D (|a| c + |a'| c') operations a pair and head instead of 4 D + 2 taps.
#pragma once

#include "sigma/attention/multi_token_op.h"

namespace sigma {

/// Full attention, all keys valid.
bool takes_multi_token_wide(const MultiTokenInput& input);
/// out [B,H,N,Dv].
torch::Tensor multi_token_wide(const MultiTokenInput& input);

}  // namespace sigma
