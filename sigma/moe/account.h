// The account of a mixture of experts: parameters, bytes, operations and lower bounds of one layer,
// from its sizes alone, or from the rows of a plan. It says what our engines do: `cpu` in float32,
// `grouped_mm` in bfloat16 (experts_cpu.cpp, experts_grouped.cpp).
//
//   R = pairs of tokens and experts; w = bytes of an element; A, Z: an expert's hidden row
//   experts touched by T tokens, uniform routing    E (1 - (1 - K/E)^T)
//   operations forward   6 R C I (swiglu; gelu 4 R C I) + 2 T C E + shared; backward twice that
//   kept for the backward   x: T C w,  Z: R 2I w (gelu: R I w),
//                           plan: 4 (2R + E + 1) (`grouped_mm`: 4 (3R + T + E + 2)),
//                           weights of pairs 4R, scores 4 T E, pairs 16 R, shared 4 T W w
//   least time   max(weights touched / bandwidth, operations forward / rate);
//                the two meet at w rate / (2 bandwidth) rows an expert
//
// Uniform routing: every expert has the mean row count, and the weights of `experts_touched` are
// read; with expert choice the tokens are one image, and every expert is touched. The bytes of
// `cpu` are tested against the allocator; those of `grouped_mm` are read off its code. Not counted:
// the losses' [images, E], buffers, what allocators and libraries keep. Not supported: the loop
// over experts (engine `reference`), which keeps every row of every step.
#pragma once

#include <torch/types.h>

#include <cstdint>

#include "sigma/moe/layer.h"

namespace sigma {

/// Bytes that wait for the backward.
struct MoeSaved {
  double x = 0;            // [T,C], an alias
  double z = 0;            // [R, 2I or I]
  double plan = 0;         // int32
  double pair_weight = 0;  // [R]; normalised: the weights before, too
  double router = 0;       // scores [T,E]; below float32 also a float32 copy of x
  double pairs = 0;        // tokens and experts of pairs, int64; expert choice: places in scores
  double shared = 0;       // hidden rows of the shared experts
  double weights = 0;      // copies of float32 weights in a narrower dtype
  double total() const { return x + z + plan + pair_weight + router + pairs + shared + weights; }
};

struct MoeAccount {
  int64_t tokens = 0;  // T
  int64_t pairs = 0;   // R
  double parameters = 0;
  double active_parameters = 0;  // that a token uses, on average
  double weight_bytes = 0;       // as the products read them; the router is float32
  double touched_weight_bytes = 0;
  MoeSaved saved;
  double gradient_bytes = 0;  // of the parameters, float32
  // The most bytes at a time beyond weights, gradients and `saved`; y, dy and dx are among them.
  double forward_workspace = 0;
  double backward_workspace = 0;
  double forward_flops = 0;
  double backward_flops = 0;
  double experts_touched = 0;
  double min_rows = 0, mean_rows = 0, max_rows = 0;  // of an expert
  double max_violation = 0;                          // max / mean - 1

  /// Bytes of a forward and a backward at their highest, beyond weights and x.
  double peak_bytes() const;
  /// Lower bounds of a forward, in seconds; bytes and operations a second.
  double weights_seconds(double bandwidth) const { return touched_weight_bytes / bandwidth; }
  double math_seconds(double rate) const { return forward_flops / rate; }
};

/// Uniform routing. dtype: of x, float32 or bfloat16. Errors: kUsage (another dtype).
MoeAccount account(const MoeConfig& config, int64_t dim, int64_t tokens, torch::ScalarType dtype);
/// The rows that a plan has. Errors: kUsage (a plan of another number of experts, another dtype).
MoeAccount account(const MoeConfig& config, int64_t dim, const Plan& plan, torch::ScalarType dtype);

/// Expected number of `experts` that `tokens` tokens touch, each choosing `chosen` at random.
double expected_experts_touched(int64_t experts, int64_t chosen, int64_t tokens);
/// Rows an expert at which reading its weights takes as long as its operations.
double balanced_rows(torch::ScalarType dtype, double bandwidth, double rate);

}  // namespace sigma
