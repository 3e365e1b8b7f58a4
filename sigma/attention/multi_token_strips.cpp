#include "sigma/attention/multi_token_strips.h"

#include <torch/autograd.h>
#include <torch/types.h>

#include <algorithm>
#include <limits>
#include <optional>

namespace sigma {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kStripBytes = int64_t{32} << 20;  // of one map; a backward holds about 15
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Where the taps of a kernel read. An index past the end: nothing.
struct Taps {
  variable_list rows;  // of each query step: for every row of the result, which row of the maps
  variable_list rows_back;        // for every row of the maps, which row of the result
  variable_list keys, keys_back;  // the same for key steps and columns
};

// sum_{a,b} kernel[h,a,b] maps[rows[a], keys[b]], keeping no shifted maps for the backward.
class Convolve : public torch::autograd::Function<Convolve> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& maps, const Tensor& kernel,
                        const std::shared_ptr<Taps>& taps) {
    ctx->save_for_backward({maps, kernel});
    ctx->saved_data["taps"] = c10::IValue::make_capsule(c10::make_intrusive<Holder>(taps));
    const int64_t rows = taps->rows[0].size(0);
    Tensor out = torch::zeros({maps.size(0), maps.size(1), rows, maps.size(3)}, maps.options());
    each_tap(maps, kernel, taps->rows, taps->keys,
             [&](const Tensor& weight, const Tensor& read) { out.addcmul_(weight, read); });
    return out;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &maps = saved[0], &kernel = saved[1], &grad = grads[0];
    const auto capsule = ctx->saved_data["taps"].toCapsule();
    const Taps& taps = *static_cast<const Holder&>(*capsule).taps;
    Tensor grad_maps, grad_kernel;
    if (ctx->needs_input_grad(0)) {
      grad_maps = torch::zeros_like(maps);
      each_tap(grad, kernel, taps.rows_back, taps.keys_back,
               [&](const Tensor& weight, const Tensor& read) { grad_maps.addcmul_(weight, read); });
    }
    if (ctx->needs_input_grad(1)) {
      variable_list sums;
      each_tap(maps, kernel, taps.rows, taps.keys, [&](const Tensor&, const Tensor& read) {
        sums.push_back((read * grad).sum(torch::IntArrayRef{0, 2, 3}));
      });
      grad_kernel = torch::stack(sums, 1).view_as(kernel);
    }
    return {grad_maps, grad_kernel, Tensor()};
  }

 private:
  struct Holder : torch::CustomClassHolder {
    explicit Holder(std::shared_ptr<Taps> t) : taps(std::move(t)) {}
    std::shared_ptr<Taps> taps;
  };
  template <typename F>
  static void each_tap(const Tensor& maps, const Tensor& kernel, const variable_list& rows,
                       const variable_list& keys, F f) {
    const Tensor edged = torch::constant_pad_nd(maps, {0, 1, 0, 1});
    for (size_t a = 0; a < rows.size(); ++a) {
      const Tensor row = edged.index_select(2, rows[a]);
      for (size_t b = 0; b < keys.size(); ++b) {
        const Tensor weight =
            kernel.select(1, static_cast<int64_t>(a)).select(1, static_cast<int64_t>(b));
        f(weight.unsqueeze(-1).unsqueeze(-1), row.index_select(3, keys[b]));
      }
    }
  }
};

// Both sides of the softmax and what the layout fixes; index tensors are on the CPU.
struct Layers {
  ScoreMixing before, after;
  variable_list before_rows, after_rows;  // stepped_back of the query steps
  variable_list before_keys, before_keys_back, after_keys, after_keys_back;  // on the device
  Tensor rank;           // on the device; undefined: all see all
  bool ordered = false;  // a token sees none behind it
  Tensor key_valid;
  double scale = 1;
  int64_t N = 0;
  int64_t rows = 0;  // of a strip
};

// The rows of maps that `rows` of the result read, and themselves; ascending.
Tensor rows_read(const Tensor& rows, const variable_list& back, int64_t N) {
  variable_list all = {rows};
  for (const Tensor& step : back) all.push_back(step.index_select(0, rows));
  const Tensor read = std::get<0>(torch::_unique(torch::cat(all)));
  return read.index_select(0, (read < N).nonzero().flatten());
}

// Of the tokens `rows`, where each is in a list; the list's length where it is not.
Tensor places(const Tensor& tokens, const Tensor& in, int64_t N) {
  Tensor place = torch::full({N + 1}, in.size(0), torch::kInt64);
  place.index_copy_(0, in, torch::arange(in.size(0)));
  return place.index_select(0, tokens);
}

// One side: from maps of the tokens `from` to maps of `to`.
Tensor mixed(const Tensor& maps, const ScoreMixing& m, const variable_list& back,
             const variable_list& keys, const variable_list& keys_back, const Tensor& from,
             const Tensor& to, const Tensor& hidden, int64_t N) {
  const torch::Device device = maps.device();
  Tensor out;
  if (m.kernel.defined()) {
    auto taps = std::make_shared<Taps>();
    taps->keys = keys;
    taps->keys_back = keys_back;
    for (const Tensor& step : back) {
      const Tensor read = places(step.index_select(0, to), from, N);
      Tensor inverse = torch::full({from.size(0) + 1}, to.size(0), torch::kInt64);
      inverse.index_copy_(0, read, torch::arange(to.size(0)));  // distinct but for the last
      taps->rows.push_back(read.to(device));
      taps->rows_back.push_back(inverse.slice(0, 0, from.size(0)).to(device));
    }
    out = Convolve::apply(maps, m.kernel.to(maps.scalar_type()), taps);
  } else {
    out = maps.index_select(2, places(to, from, N).to(device));
  }
  if (hidden.defined()) out = out.masked_fill(hidden, 0);
  if (!m.mix.defined()) return out;
  return torch::einsum("gts,bgsij->bgtij", {m.mix.to(maps.scalar_type()),
                                            out.unflatten(1, {m.mix.size(0), m.mix.size(1)})})
      .flatten(1, 2);
}

// leaves: q, k, v, then the kernels and mixes of both sides, undefined where there is none.
AttentionOutput strip(const variable_list& leaves, const Layers& layers, int64_t first) {
  const int64_t N = layers.N;
  ScoreMixing before = layers.before, after = layers.after;
  before.kernel = leaves[3];
  before.mix = leaves[4];
  after.kernel = leaves[5];
  after.mix = leaves[6];
  const torch::Device device = leaves[0].device();
  const auto wide = leaves[0].scalar_type() == torch::kDouble ? torch::kDouble : torch::kFloat;
  const Tensor own = torch::arange(first, std::min(first + layers.rows, N));
  const Tensor middle = rows_read(own, layers.after_rows, N);
  const Tensor outer = rows_read(middle, layers.before_rows, N);
  // Keys behind all rows are left out: their scores are 0, as if off the grid.
  const int64_t keys = layers.ordered ? outer[-1].item<int64_t>() + 1 : N;
  const auto steps = [&](variable_list x) {
    for (Tensor& t : x) t = t.slice(0, 0, keys).clamp_max(keys);
    return x;
  };
  const auto hidden = [&](const Tensor& tokens) {
    if (!layers.rank.defined()) return Tensor();
    const Tensor rank = layers.rank.index_select(0, tokens.to(device));
    return layers.rank.slice(0, 0, keys).unsqueeze(0) > rank.unsqueeze(1);
  };
  const auto without = [](const Tensor& x, const Tensor& mask, double value) {
    return mask.defined() ? x.masked_fill(mask, value) : x;
  };
  Tensor scores = torch::matmul(leaves[0].index_select(2, outer.to(device)).to(wide),
                                leaves[1].slice(2, 0, keys).to(wide).transpose(-1, -2)) *
                  layers.scale;
  scores = without(scores, hidden(outer), 0);
  const Tensor unseen = hidden(middle);
  scores = mixed(scores, before, layers.before_rows, steps(layers.before_keys),
                 steps(layers.before_keys_back), outer, middle, unseen, N);
  scores = without(scores, unseen, -kInfinity);
  if (layers.key_valid.defined())
    scores = scores.masked_fill(
        layers.key_valid.slice(1, 0, keys).logical_not().unsqueeze(1).unsqueeze(1), -kInfinity);
  const Tensor lse = torch::logsumexp(scores.detach(), -1);
  const Tensor none = (lse == -kInfinity).unsqueeze(-1);  // rows that see nothing
  const Tensor P = torch::softmax(scores.masked_fill(none, 0), -1).masked_fill(none, 0);
  const Tensor maps = mixed(P, after, layers.after_rows, steps(layers.after_keys),
                            steps(layers.after_keys_back), middle, own, hidden(own), N);
  return {
      .out = torch::matmul(maps, leaves[2].slice(2, 0, keys).to(wide)).to(leaves[2].scalar_type()),
      .lse = lse.index_select(2, places(own, middle, N).to(device))};
}

struct Saved : torch::CustomClassHolder {
  Layers layers;
};

class Strips : public torch::autograd::Function<Strips> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& k,
                               const Tensor& v, const std::optional<Tensor>& before,
                               const std::optional<Tensor>& before_mix,
                               const std::optional<Tensor>& after,
                               const std::optional<Tensor>& after_mix,
                               const c10::intrusive_ptr<Saved>& saved) {
    variable_list leaves = {q, k, v};
    for (const auto* x : {&before, &before_mix, &after, &after_mix})
      leaves.push_back(x->value_or(Tensor()));
    variable_list outs, lses;
    for (int64_t first = 0; first < saved->layers.N; first += saved->layers.rows) {
      const AttentionOutput some = strip(leaves, saved->layers, first);
      outs.push_back(some.out);
      lses.push_back(some.lse);
    }
    ctx->save_for_backward(leaves);
    ctx->saved_data["saved"] = c10::IValue::make_capsule(saved);
    const Tensor lse = torch::cat(lses, 2);
    ctx->mark_non_differentiable({lse});
    return {torch::cat(outs, 2), lse};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list leaves = ctx->get_saved_variables(), wanted, sums;
    for (Tensor& leaf : leaves) {
      if (!leaf.defined()) continue;
      leaf = leaf.detach().requires_grad_();
      wanted.push_back(leaf);
      const auto dtype = leaf.scalar_type() == torch::kDouble ? torch::kDouble : torch::kFloat;
      sums.push_back(torch::zeros_like(leaf, leaf.options().dtype(dtype)));
    }
    const auto capsule = ctx->saved_data["saved"].toCapsule();
    const Layers& layers = static_cast<const Saved&>(*capsule).layers;
    for (int64_t first = 0; first < layers.N; first += layers.rows) {
      const torch::AutoGradMode with_grad(true);
      const Tensor out = strip(leaves, layers, first).out;
      const variable_list some =
          torch::autograd::grad({out}, wanted, {grads[0].slice(2, first, first + out.size(2))});
      const torch::NoGradGuard no_grad;
      for (size_t i = 0; i < sums.size(); ++i) sums[i] += some[i];
    }
    variable_list out(leaves.size() + 1);
    for (size_t i = 0, at = 0; i < leaves.size(); ++i)
      if (leaves[i].defined()) out[i] = sums[at++].to(leaves[i].scalar_type());
    return out;
  }
};

}  // namespace

AttentionOutput multi_token_strips(const MultiTokenInput& in, int64_t rows) {
  auto saved = c10::make_intrusive<Saved>();
  Layers& layers = saved->layers;
  const int64_t N = layers.N = in.q.size(2);
  const int64_t row_bytes = std::max<int64_t>(in.q.size(0) * in.q.size(1) * N * 4, 1);
  layers.rows = rows > 0 ? rows : std::max<int64_t>(kStripBytes / row_bytes, 16);
  layers.before = in.before;
  layers.after = in.after;
  const auto back = [&](const std::vector<GridStep>& steps, int64_t sign) {
    variable_list out;
    for (const auto& [f, y, x] : steps)
      out.push_back(stepped_back(in.layout, {sign * f, sign * y, sign * x}));
    return out;
  };
  const auto on_device = [&](variable_list x) {
    for (Tensor& t : x) t = t.to(in.q.device());
    return x;
  };
  if (in.before.kernel.defined()) {
    layers.before_rows = back(in.before.queries, 1);
    layers.before_keys = on_device(back(in.before.keys, 1));
    layers.before_keys_back = on_device(back(in.before.keys, -1));
  }
  if (in.after.kernel.defined()) {
    layers.after_rows = back(in.after.queries, 1);
    layers.after_keys = on_device(back(in.after.keys, 1));
    layers.after_keys_back = on_device(back(in.after.keys, -1));
  }
  if (const Tensor rank = token_ranks(in.layout); rank.defined())
    layers.rank = rank.to(in.q.device());
  layers.ordered = in.layout.pattern == Pattern::kCausal;
  layers.key_valid = in.key_valid;
  layers.scale = score_scale(in.scale, in.q);
  const auto or_none = [](const Tensor& x) {
    return x.defined() ? std::optional(x) : std::nullopt;
  };
  const variable_list out =
      Strips::apply(in.q, without_invalid(in.k, in.key_valid), without_invalid(in.v, in.key_valid),
                    or_none(in.before.kernel), or_none(in.before.mix), or_none(in.after.kernel),
                    or_none(in.after.mix), saved);
  return {.out = out[0], .lse = out[1]};
}

}  // namespace sigma
