#include "sigma/attention/kernels/multi_token.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "sigma/attention/kernels/multi_token_strip.h"

namespace sigma::kernels {
namespace {

constexpr int64_t kTasks = 8;  // that a backward is split into, if the heads do not give as many

Rows union_of(Rows x, Rows y) { return {std::min(x.first, y.first), std::max(x.last, y.last)}; }

}  // namespace

MultiTokenWork multi_token_work(const MultiToken& a) {
  MultiTokenWork work;
  work.heads = std::lcm(a.before.mix ? a.before.heads : 1, a.after.mix ? a.after.heads : 1);
  // A map of a strip: 1 MB, or less than a quarter overlap.
  work.strip = std::clamp<int64_t>((int64_t{1} << 18) / std::max<int64_t>(a.places, 1), 32, 128);
  work.strips = (a.queries + work.strip - 1) / work.strip;
  const int64_t groups = a.B * (a.H / work.heads);
  work.parts =
      groups == 0 ? 1 : std::clamp<int64_t>(kTasks / groups, 1, std::max<int64_t>(work.strips, 1));
  work.forward_tasks = groups * work.strips;
  work.backward_tasks = work.parts * groups;
  return work;
}

void multi_token_forward(const MultiToken& a, const MultiTokenWork& work, int64_t task) {
  const int64_t groups = a.H / work.heads;
  const int64_t strip_index = task % work.strips;
  const int64_t group = task / work.strips;
  const Strip strip(a, work, group / groups, group % groups * work.heads);
  const Rows rows{strip_index * work.strip, std::min((strip_index + 1) * work.strip, a.queries)};
  const Reach before = query_reach(a.before), after = query_reach(a.after);
  const Rows middle = needed(rows, after);

  Maps S = strip.maps(before, after), P = strip.maps(after), A = strip.maps({});
  strip.scores(a.q, strip.panels(a.k, a.D), a.D, a.scale, needed(middle, before), S);
  strip.convolve(strip.taps(a.before, false), S, middle, P);
  strip.mix_heads(a.before, middle, P, false);
  strip.probabilities(P, a.lse, rows);
  strip.convolve(strip.taps(a.after, false), P, rows, A);
  strip.hide(rows, A);
  strip.mix_heads(a.after, rows, A, false);
  for (int64_t h = 0; h < work.heads; ++h)
    product(rows.last - rows.first, A[h].row(rows.first), A[h].stride(), a.v + strip.at(h) * a.Dv,
            strip.columns(rows) / kPanel, a.Dv, a.out + (strip.at(h) + rows.first) * a.Dv);
}

void multi_token_backward(const MultiToken& a, const MultiTokenGrad& g, const MultiTokenWork& work,
                          int64_t task) {
  const int64_t groups = a.H / work.heads;
  const int64_t part = task / (a.B * groups);
  const int64_t b = task / groups % a.B;
  const int64_t head = task % groups * work.heads;
  const Strip strip(a, work, b, head);
  const Reach before = query_reach(a.before), after = query_reach(a.after);
  const int64_t place = (part * a.B + b) * a.H + head;  // of gradients that are added up

  const std::vector<float> keys = strip.panels(a.k, a.D), values = strip.panels(a.v, a.Dv);
  const std::vector<Taps> theta = strip.taps(a.before, false), theta_t = strip.taps(a.before, true);
  const std::vector<Taps> phi = strip.taps(a.after, false), phi_t = strip.taps(a.after, true);
  const Reach wide{std::max(before.ahead, after.back), std::max(before.back, after.ahead)};
  Maps S = strip.maps(wide, before), P = strip.maps(wide), E = strip.maps({});
  Maps C = a.before.mix ? strip.maps(wide) : Maps();
  Maps dA = strip.maps(before, after), dP = strip.maps(before), dS = strip.maps({});

  for (int64_t s = part * work.strips / work.parts; s < (part + 1) * work.strips / work.parts;
       ++s) {
    const Rows rows{s * work.strip, std::min((s + 1) * work.strip, a.queries)};
    const Rows rows_dP = turned(rows, before);
    const Rows rows_P = union_of(rows_dP, needed(rows, after));
    strip.scores(a.q, keys, a.D, a.scale, needed(rows_P, before), S);
    strip.convolve(theta, S, rows_P, P);
    for (size_t h = 0; h < C.size(); ++h) C[h] = P[h];
    strip.mix_heads(a.before, rows_P, P, false);
    strip.probabilities(P, nullptr, {});
    strip.convolve(phi, P, rows, E);
    strip.hide(rows, E);

    strip.scores(g.grad_out, values, a.Dv, 1, turned(rows_dP, after), dA);
    strip.add_mix_grad(a.after, E, dA, rows, g.after_mix + place * a.after.heads);
    strip.mix_heads(a.after, rows, E, false);
    strip.mix_heads(a.after, turned(rows_dP, after), dA, true);
    strip.add_kernel_grad(phi, P, dA, rows, a.after.taps(), g.after + place * a.after.taps());
    strip.convolve(phi_t, dA, rows_dP, dP);
    strip.softmax_grads(P, dP);
    strip.add_mix_grad(a.before, C, dP, rows, g.before_mix + place * a.before.heads);
    strip.mix_heads(a.before, rows_dP, dP, true);
    strip.add_kernel_grad(theta, S, dP, rows, a.before.taps(), g.before + place * a.before.taps());
    strip.convolve(theta_t, dP, rows, dS);
    strip.hide(rows, dS);

    const int64_t count = rows.last - rows.first;
    const int64_t panels = strip.columns(rows) / kPanel;
    for (int64_t h = 0; h < work.heads; ++h) {
      const int64_t here = strip.at(h) + rows.first;
      const int64_t sum = (place + h) * a.places;
      add_transposed_product(count, E[h].row(rows.first), E[h].stride(), g.grad_out + here * a.Dv,
                             panels, a.Dv, g.v + sum * a.Dv);
      for (int64_t i = rows.first; i < rows.last; ++i)
        scale_by(a.scale, dS[h].row(i), panels * kPanel);
      product(count, dS[h].row(rows.first), dS[h].stride(), a.k + strip.at(h) * a.D, panels, a.D,
              g.q + here * a.D);
      add_transposed_product(count, dS[h].row(rows.first), dS[h].stride(), a.q + here * a.D, panels,
                             a.D, g.k + sum * a.D);
    }
  }
}

}  // namespace sigma::kernels
