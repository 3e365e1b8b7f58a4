// The multi-token kernels under the sanitizers: what they read and write stays inside the buffers,
// whatever the kernels' reach. Values: tests/attention/multi_token_op_test.cpp.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <vector>

#include "sigma/attention/kernels/multi_token.h"

namespace sigma::kernels {
namespace {

struct Case {
  int64_t places, queries, isolated;
  std::vector<int64_t> query_steps, key_steps;
  bool causal = false;
  int64_t mix = 1;
};

std::vector<float> values(int64_t count) {
  std::vector<float> out(static_cast<size_t>(count));
  for (size_t i = 0; i < out.size(); ++i) out[i] = std::sin(static_cast<float>(i));
  return out;
}

void run(const Case& c) {
  constexpr int64_t B = 2, H = 4, D = 16;
  const auto q = values(B * H * c.places * D), k = q, v = q, grad_out = q;
  std::vector<float> bias(static_cast<size_t>(B * c.places), -INFINITY);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t i = 0; i < c.queries; ++i) bias[b * c.places + i] = 0;
  std::vector<int64_t> rank(static_cast<size_t>(c.places));
  for (int64_t i = 0; i < c.places; ++i) rank[i] = i;
  const auto token = std::make_unique<bool[]>(static_cast<size_t>(c.places));
  for (int64_t i = 0; i < c.places; ++i) token[i] = i < c.queries;
  const auto taps = static_cast<int64_t>(c.query_steps.size() * c.key_steps.size());
  const auto weight = values(H * taps), mix = values(H * c.mix);
  std::vector<float> out(q.size()), lse(static_cast<size_t>(B * H * c.places));
  const MapConvolution side{.queries = static_cast<int64_t>(c.query_steps.size()),
                            .keys = static_cast<int64_t>(c.key_steps.size()),
                            .query_step = c.query_steps.data(),
                            .key_step = c.key_steps.data(),
                            .weight = weight.data(),
                            .heads = c.mix,
                            .mix = c.mix > 1 ? mix.data() : nullptr};
  MultiToken a{.B = B,
               .H = H,
               .D = D,
               .Dv = D,
               .places = c.places,
               .queries = c.queries,
               .isolated = c.isolated,
               .q = q.data(),
               .k = k.data(),
               .v = v.data(),
               .bias = bias.data(),
               .rank = c.causal ? rank.data() : nullptr,
               .ordered = c.causal,
               .is_token = token.get(),
               .scale = 0.25f,
               .before = side,
               .after = side,
               .out = out.data(),
               .lse = lse.data()};
  const MultiTokenWork work = multi_token_work(a);
  for (int64_t t = 0; t < work.forward_parts * work.groups; ++t) multi_token_forward(a, work, t);
  std::vector<float> grad_q(q.size());
  std::vector<float> grad_k(static_cast<size_t>(work.parts) * q.size()), grad_v = grad_k;
  std::vector<double> before(static_cast<size_t>(work.parts * B * H * taps)), after = before;
  std::vector<double> before_mix(static_cast<size_t>(work.parts * B * H * c.mix)),
      after_mix = before_mix;
  const MultiTokenGrad g{.grad_out = grad_out.data(),
                         .q = grad_q.data(),
                         .k = grad_k.data(),
                         .v = grad_v.data(),
                         .before = before.data(),
                         .after = after.data(),
                         .before_mix = before_mix.data(),
                         .after_mix = after_mix.data()};
  for (int64_t t = 0; t < work.parts * work.groups; ++t) multi_token_backward(a, g, work, t);
  for (const float x : out) ASSERT_TRUE(std::isfinite(x));
  for (const float x : grad_q) ASSERT_TRUE(std::isfinite(x));
}

TEST(MultiTokenKernels, StayInsideTheirBuffers) {
  run({.places = 64, .queries = 1, .isolated = 64, .query_steps = {0}, .key_steps = {0}});
  run({.places = 64,
       .queries = 49,
       .isolated = 32,
       .query_steps = {0},
       .key_steps = {0},
       .mix = 2});
  run({.places = 128,
       .queries = 70,
       .isolated = 128,
       .query_steps = {0, 1, 2, 3, 4, 5},
       .key_steps = {-5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5},
       .causal = true,
       .mix = 4});
  run({.places = 192,
       .queries = 180,
       .isolated = 160,
       .query_steps = {-17, -16, -15, -1, 0, 1, 15, 16, 17},
       .key_steps = {-33, -16, 0, 16, 33}});
}

}  // namespace
}  // namespace sigma::kernels
