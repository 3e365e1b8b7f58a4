#include "sigma/attention/kernels/multi_token.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "sigma/attention/kernels/multi_token_strip.h"

namespace sigma::kernels {
namespace {

// Into how many tasks a pass is split, if the heads do not give as many.
constexpr int64_t kForwardTasks = 32;
constexpr int64_t kBackwardTasks = 8;

Rows union_of(Rows x, Rows y) { return {std::min(x.first, y.first), std::max(x.last, y.last)}; }

// The strips of a task.
struct Run {
  int64_t part, b, head, first, last;
  int64_t strip, queries;

  Run(const MultiToken& a, const MultiTokenWork& work, int64_t parts, int64_t task)
      : part(task / work.groups), strip(work.strip), queries(a.queries) {
    const int64_t group = task % work.groups;
    const int64_t groups_an_image = a.H / work.heads;
    b = group / groups_an_image;
    head = group % groups_an_image * work.heads;
    first = part * work.strips / parts;
    last = (part + 1) * work.strips / parts;
  }
  Rows rows(int64_t s) const { return {s * strip, std::min((s + 1) * strip, queries)}; }
};

}  // namespace

MultiTokenWork multi_token_work(const MultiToken& a) {
  MultiTokenWork work;
  work.heads = std::lcm(a.before.mix ? a.before.heads : 1, a.after.mix ? a.after.heads : 1);
  // Maps of about 2 MB, but strips at least as long as what they share with their neighbours.
  const Reach before = query_reach(a.before), after = query_reach(a.after);
  const int64_t shared = before.back + before.ahead + after.back + after.ahead;
  work.strip = std::clamp<int64_t>((int64_t{1} << 19) / std::max<int64_t>(a.places, 1), 32, 128);
  work.strip =
      std::clamp<int64_t>(std::max(work.strip, shared), 1, std::max<int64_t>(a.queries, 1));
  work.strips = (a.queries + work.strip - 1) / work.strip;
  work.groups = a.B * (a.H / work.heads);
  const auto parts = [&](int64_t tasks) {
    return std::clamp<int64_t>(tasks / std::max<int64_t>(work.groups, 1), 1,
                               std::max<int64_t>(work.strips, 1));
  };
  work.forward_parts = parts(kForwardTasks);
  work.parts = parts(kBackwardTasks);
  return work;
}

void multi_token_forward(const MultiToken& a, const MultiTokenWork& work, int64_t task) {
  const Run run(a, work, work.forward_parts, task);
  const Strip strip(a, work, run.b, run.head);
  const Reach before = query_reach(a.before), after = query_reach(a.after);
  const std::vector<float> keys = strip.panels(a.k, a.D, a.scale);
  const std::vector<Taps> theta = strip.taps(a.before, false), phi = strip.taps(a.after, false);
  Maps S = strip.maps(before, after), P = strip.maps(after), A = strip.maps({});

  for (int64_t s = run.first; s < run.last; ++s) {
    const Rows rows = run.rows(s);
    const Rows middle = needed(rows, after);
    strip.scores(a.q, keys, a.D, needed(middle, before), S);
    strip.convolve(theta, S, middle, P);
    strip.mix_heads(a.before, middle, P, false);
    strip.probabilities(P, a.lse, rows);
    strip.convolve(phi, P, rows, A);
    strip.hide(rows, A);
    strip.mix_heads(a.after, rows, A, false);
    for (int64_t h = 0; h < work.heads; ++h)
      product(rows.last - rows.first, A[h].row(rows.first), A[h].stride(), a.v + strip.at(h) * a.Dv,
              strip.columns(rows) / kPanel, a.Dv, a.out + (strip.at(h) + rows.first) * a.Dv);
  }
}

void multi_token_backward(const MultiToken& a, const MultiTokenGrad& g, const MultiTokenWork& work,
                          int64_t task) {
  const Run run(a, work, work.parts, task);
  const Strip strip(a, work, run.b, run.head);
  const Reach before = query_reach(a.before), after = query_reach(a.after);
  const int64_t place = (run.part * a.B + run.b) * a.H + run.head;  // of gradients added up

  const std::vector<float> keys = strip.panels(a.k, a.D, a.scale);
  const std::vector<float> values = strip.panels(a.v, a.Dv, 1);
  const std::vector<Taps> theta = strip.taps(a.before, false), theta_t = strip.taps(a.before, true);
  const std::vector<Taps> phi = strip.taps(a.after, false), phi_t = strip.taps(a.after, true);
  const Reach wide{std::max(before.ahead, after.back), std::max(before.back, after.ahead)};
  Maps S = strip.maps(wide, before), P = strip.maps(wide), E = strip.maps({});
  Maps C = a.before.mix ? strip.maps(wide) : Maps();
  Maps dA = strip.maps(before, after), dP = strip.maps(before), dS = strip.maps({});

  for (int64_t s = run.first; s < run.last; ++s) {
    const Rows rows = run.rows(s);
    const Rows rows_dP = turned(rows, before);
    const Rows rows_P = union_of(rows_dP, needed(rows, after));
    strip.scores(a.q, keys, a.D, needed(rows_P, before), S);
    strip.convolve(theta, S, rows_P, P);
    for (size_t h = 0; h < C.size(); ++h) C[h].take(P[h]);
    strip.mix_heads(a.before, rows_P, P, false);
    strip.probabilities(P, nullptr, {});
    strip.convolve(phi, P, rows, E);
    strip.hide(rows, E);

    strip.scores(g.grad_out, values, a.Dv, turned(rows_dP, after), dA);
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
      product(count, dS[h].row(rows.first), dS[h].stride(), a.k + strip.at(h) * a.D, panels, a.D,
              g.q + here * a.D);
      scale_by(a.scale, g.q + here * a.D, count * a.D);
      add_transposed_product(count, dS[h].row(rows.first), dS[h].stride(), a.q + here * a.D, panels,
                             a.D, g.k + sum * a.D);
    }
  }
  scale_by(a.scale, g.k + place * a.places * a.D, work.heads * a.places * a.D);
}

}  // namespace sigma::kernels
