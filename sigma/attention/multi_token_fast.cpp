#include "sigma/attention/multi_token_fast.h"

#include <torch/autograd.h>
#include <torch/types.h>

#include <algorithm>
#include <limits>

#include "sigma/attention/kernels/multi_token.h"
#include "sigma/base/tasks.h"

namespace sigma {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kPanel = 64;
constexpr int64_t kColumns = 32;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Where the kernels want the tokens: grid rows as far apart as the convolutions reach, then a gap,
// then the tokens without neighbours.
struct Places {
  Tensor token;                // [places] int64: N where there is none
  Tensor place;                // [N]
  Tensor present;              // [places] bool
  Tensor rank;                 // [places] int64; undefined: all see all
  int64_t row = 0, frame = 0;  // steps of one row, one frame
  int64_t queries = 0, isolated = 0;
  bool identity = false;

  int64_t count() const { return token.size(0); }
  Tensor steps(const std::vector<GridStep>& grid_steps) const {
    Tensor out = torch::empty({static_cast<int64_t>(grid_steps.size())}, torch::kInt64);
    for (size_t i = 0; i < grid_steps.size(); ++i) {
      const auto& [f, y, x] = grid_steps[i];
      out.data_ptr<int64_t>()[i] = f * frame + y * row + x;
    }
    return out;
  }
};

Places places_of(const MultiTokenInput& in) {
  const TokenLayout& layout = in.layout;
  const auto [F, Y, X] = layout.grid;
  GridStep most = {0, 0, 0};
  for (const ScoreMixing* m : {&in.before, &in.after}) {
    if (!m->kernel.defined()) continue;
    for (const auto* steps : {&m->queries, &m->keys})
      for (const GridStep& step : *steps)
        for (size_t axis = 0; axis < 3; ++axis)
          most[axis] = std::max(most[axis], std::abs(step[axis]));
  }
  Places p;
  p.row = X + most[2];
  p.frame = (Y + most[1]) * p.row;
  const int64_t end = (F - 1) * p.frame + (Y - 1) * p.row + X;
  const int64_t alone = layout.before + layout.after;
  const int64_t reach = most[0] * p.frame + most[1] * p.row + most[2];
  p.isolated = alone > 0 ? (end + reach + kColumns - 1) / kColumns * kColumns : 0;
  p.queries = alone > 0 ? p.isolated + alone : end;
  const int64_t count = (p.queries + kPanel - 1) / kPanel * kPanel;
  if (alone == 0) p.isolated = count;

  const int64_t N = layout.tokens();
  p.token = torch::full({count}, N, torch::kInt64);
  p.place = torch::empty({N}, torch::kInt64);
  const auto put = [&](int64_t token, int64_t place) {
    p.token.data_ptr<int64_t>()[place] = token;
    p.place.data_ptr<int64_t>()[token] = place;
  };
  for (int64_t i = 0; i < layout.grid.size(); ++i)
    put(layout.before + i, i / (Y * X) * p.frame + i / X % Y * p.row + i % X);
  int64_t next = p.isolated;
  for (int64_t i = 0; i < layout.before; ++i) put(i, next++);
  for (int64_t i = N - layout.after; i < N; ++i) put(i, next++);
  p.present = p.token < N;
  p.identity = count == N && alone == 0 && Y * F == 1;
  if (const Tensor rank = token_ranks(layout); rank.defined())
    p.rank = torch::constant_pad_nd(rank, {0, 1}).index_select(0, p.token);
  return p;
}

// [B,H,N,D] -> [B,H,places,D], 0 where there is no token.
Tensor to_places(const Tensor& x, const Places& p) {
  if (p.identity) return x;
  return torch::constant_pad_nd(x, {0, 0, 0, 1}).index_select(2, p.token);
}

Tensor to_tokens(const Tensor& x, const Places& p) {
  return p.identity ? x : x.index_select(2, p.place);
}

// Saved for the backward: what the caller gave, then the tables of the kernels.
enum Saved {
  kQ,
  kK,
  kV,
  kBefore,
  kAfter,
  kBeforeMix,
  kAfterMix,
  kInputs,
  kBias = kInputs,
  kRank,
  kPresent,
  kBeforeQueries,
  kBeforeKeys,
  kAfterQueries,
  kAfterKeys
};

kernels::MapConvolution convolution(const variable_list& t, Saved kernel, Saved mix, Saved queries,
                                    Saved keys) {
  kernels::MapConvolution c{.queries = t[queries].size(0),
                            .keys = t[keys].size(0),
                            .query_step = t[queries].data_ptr<int64_t>(),
                            .key_step = t[keys].data_ptr<int64_t>(),
                            .weight = t[kernel].data_ptr<float>()};
  if (t[mix].numel() > 0) {
    c.heads = t[mix].size(1);
    c.mix = t[mix].data_ptr<float>();
  }
  return c;
}

class Fast : public torch::autograd::Function<Fast> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& k,
                               const Tensor& v, const Tensor& before, const Tensor& after,
                               const Tensor& before_mix, const Tensor& after_mix,
                               const variable_list& tables, int64_t queries, int64_t isolated,
                               double scale) {
    variable_list saved = {q, k, v, before, after, before_mix, after_mix};
    for (Tensor& x : saved) x = x.contiguous();
    saved.insert(saved.end(), tables.begin(), tables.end());
    ctx->saved_data["queries"] = queries;
    ctx->saved_data["isolated"] = isolated;
    ctx->saved_data["scale"] = scale;
    const Tensor out = torch::empty({q.size(0), q.size(1), q.size(2), v.size(3)}, q.options());
    const Tensor lse = torch::empty({q.size(0), q.size(1), q.size(2)}, q.options());
    kernels::MultiToken a = arguments(ctx, saved);
    a.out = out.data_ptr<float>();
    a.lse = lse.data_ptr<float>();
    const kernels::MultiTokenWork work = kernels::multi_token_work(a);
    run_tasks(work.forward_parts * work.groups,
              [&](int64_t task) { kernels::multi_token_forward(a, work, task); });
    ctx->save_for_backward(saved);
    ctx->mark_non_differentiable({lse});
    return {out, lse};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const kernels::MultiToken a = arguments(ctx, saved);
    const kernels::MultiTokenWork work = kernels::multi_token_work(a);
    const Tensor grad_out = grads[0].contiguous();
    const auto sums = [&](int64_t rows, int64_t width, torch::ScalarType dtype) {
      return torch::zeros({work.parts, a.B, a.H, rows, width}, dtype);
    };
    Tensor grad_q = torch::zeros_like(saved[kQ]);
    Tensor grad_k = sums(a.places, a.D, torch::kFloat);
    Tensor grad_v = sums(a.places, a.Dv, torch::kFloat);
    Tensor before = sums(a.before.queries, a.before.keys, torch::kDouble);
    Tensor after = sums(a.after.queries, a.after.keys, torch::kDouble);
    Tensor before_mix = sums(1, a.before.heads, torch::kDouble);
    Tensor after_mix = sums(1, a.after.heads, torch::kDouble);
    const kernels::MultiTokenGrad g{.grad_out = grad_out.data_ptr<float>(),
                                    .q = grad_q.data_ptr<float>(),
                                    .k = grad_k.data_ptr<float>(),
                                    .v = grad_v.data_ptr<float>(),
                                    .before = before.data_ptr<double>(),
                                    .after = after.data_ptr<double>(),
                                    .before_mix = before_mix.data_ptr<double>(),
                                    .after_mix = after_mix.data_ptr<double>()};
    run_tasks(work.parts * work.groups,
              [&](int64_t task) { kernels::multi_token_backward(a, g, work, task); });
    const auto total = [&](const Tensor& x, Saved like) {
      const Tensor& t = saved[like];
      return t.numel() > 0 ? x.sum(torch::IntArrayRef{0, 1}).reshape(t.sizes()).to(torch::kFloat)
                           : Tensor();
    };
    return {grad_q,
            grad_k.sum(0),
            grad_v.sum(0),
            total(before, kBefore),
            total(after, kAfter),
            total(before_mix, kBeforeMix),
            total(after_mix, kAfterMix),
            Tensor(),
            Tensor(),
            Tensor(),
            Tensor()};
  }

 private:
  static kernels::MultiToken arguments(AutogradContext* ctx, const variable_list& t) {
    const Tensor& rank = t[kRank];
    const int64_t places = t[kQ].size(2);
    const int64_t isolated = ctx->saved_data["isolated"].toInt();
    kernels::MultiToken a{
        .B = t[kQ].size(0),
        .H = t[kQ].size(1),
        .D = t[kQ].size(3),
        .Dv = t[kV].size(3),
        .places = places,
        .queries = ctx->saved_data["queries"].toInt(),
        .isolated = isolated,
        .q = t[kQ].data_ptr<float>(),
        .k = t[kK].data_ptr<float>(),
        .v = t[kV].data_ptr<float>(),
        .bias = t[kBias].data_ptr<float>(),
        .is_token = t[kPresent].data_ptr<bool>(),
        .scale = static_cast<float>(ctx->saved_data["scale"].toDouble()),
        .before = convolution(t, kBefore, kBeforeMix, kBeforeQueries, kBeforeKeys),
        .after = convolution(t, kAfter, kAfterMix, kAfterQueries, kAfterKeys)};
    if (rank.defined()) {
      a.rank = rank.data_ptr<int64_t>();
      const bool past =
          (t[kBeforeQueries] >= 0).all().item<bool>() && (t[kAfterQueries] >= 0).all().item<bool>();
      a.ordered = past && torch::equal(rank.narrow(0, 0, a.queries), torch::arange(a.queries));
    }
    return a;
  }
};

// A side as the kernels take it: one tap of 1 where there is no convolution, no elements where
// heads do not mix.
struct Side {
  Tensor kernel, queries, keys, mix;
  Side(const ScoreMixing& m, int64_t heads, const Places& places)
      : kernel(m.kernel.defined() ? m.kernel.to(torch::kFloat) : torch::ones({heads, 1, 1})),
        queries(places.steps(m.queries)),
        keys(places.steps(m.keys)),
        mix(m.mix.defined() ? m.mix.to(torch::kFloat) : torch::empty({0})) {
    if (m.kernel.defined()) return;
    queries = keys = torch::zeros({1}, torch::kInt64);
  }
};

}  // namespace

bool takes_multi_token_kernels(const MultiTokenInput& in) {
  for (const Tensor& x : {in.q, in.k, in.v})
    if (!x.is_cpu() || x.scalar_type() != torch::kFloat) return false;
  return in.layout.grid.size() > 0;
}

AttentionOutput multi_token_kernels(const MultiTokenInput& in) {
  const Places places = places_of(in);
  const int64_t H = in.q.size(1);
  const Side before(in.before, H, places), after(in.after, H, places);
  Tensor present = places.present.unsqueeze(0);
  if (in.key_valid.defined())
    present = present & torch::constant_pad_nd(in.key_valid, {0, 1}).index_select(1, places.token);
  const Tensor bias =
      torch::zeros({in.q.size(0), places.count()}).masked_fill(present.logical_not(), -kInfinity);
  const double scale = score_scale(in.scale, in.q);
  const variable_list out = Fast::apply(
      pad_columns(to_places(in.q, places)), pad_columns(to_places(in.k, places)),
      pad_columns(to_places(in.v, places)), before.kernel, after.kernel, before.mix, after.mix,
      variable_list{bias, places.rank, places.present, before.queries, before.keys, after.queries,
                    after.keys},
      places.queries, places.isolated, scale);
  return {.out = to_tokens(out[0], places).slice(3, 0, in.v.size(3)),
          .lse = to_tokens(out[1], places)};
}

}  // namespace sigma
