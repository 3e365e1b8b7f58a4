#include "sigma/attention/multi_token_op.h"

#include <torch/autograd.h>
#include <torch/types.h>

#include <limits>

#include "sigma/attention/multi_token_fast.h"
#include "sigma/attention/multi_token_gpu.h"
#include "sigma/attention/multi_token_strips.h"
#include "sigma/attention/multi_token_wide.h"
#include "sigma/attention/path.h"
#include "sigma/base/error.h"

namespace sigma {
namespace {

using torch::Tensor;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::vector<GridStep> box(GridStep first, GridStep last) {
  std::vector<GridStep> steps;
  for (int64_t f = first[0]; f <= last[0]; ++f)
    for (int64_t y = first[1]; y <= last[1]; ++y)
      for (int64_t x = first[2]; x <= last[2]; ++x) steps.push_back({f, y, x});
  return steps;
}

void check(const MultiTokenInput& in) {
  const auto& [q, k, v, layout, before, after, key_valid, scale] = in;
  SIGMA_CHECK(kUsage, !layout.visible.defined(),
              "multi_token_attention: masked layouts are not supported: neighbours are missing");
  SIGMA_CHECK(kUsage, q.dim() == 4 && k.dim() == 4 && v.dim() == 4,
              "multi_token_attention: expected q, k, v of 4 axes, got {}, {}, {}", q.dim(), k.dim(),
              v.dim());
  SIGMA_CHECK(kUsage, q.sizes() == k.sizes() && q.sizes().slice(0, 3) == v.sizes().slice(0, 3),
              "multi_token_attention: k [{}] and v [{}] do not fit q [{}]",
              fmt::join(k.sizes(), ","), fmt::join(v.sizes(), ","), fmt::join(q.sizes(), ","));
  SIGMA_CHECK(kUsage, q.size(2) == layout.tokens(),
              "multi_token_attention: expected {} tokens, got {}", layout.tokens(), q.size(2));
  SIGMA_CHECK(kUsage,
              !key_valid.defined() || (key_valid.dim() == 2 && key_valid.size(0) == q.size(0) &&
                                       key_valid.size(1) == q.size(2)),
              "multi_token_attention: expected key_valid [{},{}], got [{}]", q.size(0), q.size(2),
              fmt::join(key_valid.sizes(), ","));
  const int64_t H = q.size(1);
  for (const ScoreMixing* m : {&before, &after}) {
    const auto queries = static_cast<int64_t>(m->queries.size());
    const auto keys = static_cast<int64_t>(m->keys.size());
    SIGMA_CHECK(kUsage,
                !m->kernel.defined() || m->kernel.sizes() == torch::IntArrayRef({H, queries, keys}),
                "multi_token_attention: expected a kernel [{},{},{}], got [{}]", H, queries, keys,
                fmt::join(m->kernel.sizes(), ","));
    SIGMA_CHECK(kUsage,
                !m->mix.defined() || (m->mix.dim() == 3 && m->mix.size(1) == m->mix.size(2) &&
                                      m->mix.size(0) * m->mix.size(1) == H),
                "multi_token_attention: expected mixes of the heads [{0}/c,c,c], got [{1}]", H,
                fmt::join(m->mix.sizes(), ","));
  }
}

// Convolution and mix of score maps [B,H,N,N], hidden pairs 0 between them.
Tensor mixed(const Tensor& maps, const ScoreMixing& m, const TokenLayout& layout,
             const Tensor& hidden) {
  Tensor out = maps;
  if (m.kernel.defined()) {
    const Tensor edged = torch::constant_pad_nd(maps, {0, 1, 0, 1});  // row and column N: zeros
    const Tensor kernel = m.kernel.to(maps.scalar_type()).unsqueeze(-1).unsqueeze(-1);
    std::vector<Tensor> back;
    for (const GridStep& key : m.keys) back.push_back(stepped_back(layout, key).to(maps.device()));
    out = torch::zeros_like(maps);
    for (size_t a = 0; a < m.queries.size(); ++a) {
      const Tensor rows =
          edged.index_select(2, stepped_back(layout, m.queries[a]).to(maps.device()));
      for (size_t b = 0; b < m.keys.size(); ++b) {
        const Tensor weight =
            kernel.select(1, static_cast<int64_t>(a)).select(1, static_cast<int64_t>(b));
        out = out + weight * rows.index_select(3, back[b]);
      }
    }
  }
  if (hidden.defined()) out = out.masked_fill(hidden, 0);
  if (m.mix.defined())
    out = torch::einsum("gts,bgsij->bgtij", {m.mix.to(maps.scalar_type()),
                                             out.unflatten(1, {m.mix.size(0), m.mix.size(1)})})
              .flatten(1, 2);
  return out;
}

}  // namespace

std::vector<GridStep> centred_steps(const Grid& sides, const std::string& key) {
  for (const int64_t side : {sides.frames, sides.height, sides.width})
    SIGMA_CHECK(kUsage, side % 2 == 1, "{}: expected odd sides, got {}", key, side);
  const GridStep most = {sides.frames / 2, sides.height / 2, sides.width / 2};
  return box({-most[0], -most[1], -most[2]}, most);
}

std::vector<GridStep> past_steps(const Grid& sides) {
  return box({0, 0, 0}, {sides.frames - 1, sides.height - 1, sides.width - 1});
}

Tensor token_ranks(const TokenLayout& layout) {
  const int64_t N = layout.tokens();
  if (layout.pattern == Pattern::kFull) return {};
  if (layout.pattern == Pattern::kCausal) return torch::arange(N);
  return (torch::arange(N) - (N - layout.after) + 1).clamp_min(0);
}

Tensor stepped_back(const TokenLayout& layout, const GridStep& step) {
  const int64_t N = layout.tokens();
  const auto [F, Y, X] = layout.grid;
  if (step == GridStep{}) return torch::arange(N);
  Tensor out = torch::full({N}, N, torch::kInt64);
  int64_t* to = out.data_ptr<int64_t>();
  for (int64_t i = 0; i < layout.grid.size(); ++i) {
    const int64_t f = i / (Y * X) - step[0];
    const int64_t y = i / X % Y - step[1];
    const int64_t x = i % X - step[2];
    if (f >= 0 && f < F && y >= 0 && y < Y && x >= 0 && x < X)
      to[layout.before + i] = layout.before + (f * Y + y) * X + x;
  }
  return out;
}

AttentionOutput multi_token_attention_reference(const MultiTokenInput& in) {
  check(in);
  const auto wide = in.q.scalar_type() == torch::kDouble ? torch::kDouble : torch::kFloat;
  const Tensor k = without_invalid(in.k, in.key_valid).to(wide);
  const Tensor v = without_invalid(in.v, in.key_valid).to(wide);
  const double scale = score_scale(in.scale, in.q);
  Tensor hidden;  // [N,N]
  if (const Tensor rank = token_ranks(in.layout); rank.defined())
    hidden = (rank.unsqueeze(0) > rank.unsqueeze(1)).to(in.q.device());

  Tensor scores = torch::matmul(in.q.to(wide), k.transpose(-1, -2)) * scale;
  if (hidden.defined()) scores = scores.masked_fill(hidden, 0);
  scores = mixed(scores, in.before, in.layout, hidden);
  if (hidden.defined()) scores = scores.masked_fill(hidden, -kInfinity);
  if (in.key_valid.defined())
    scores = scores.masked_fill(in.key_valid.logical_not().unsqueeze(1).unsqueeze(1), -kInfinity);
  const Tensor lse = torch::logsumexp(scores.detach(), -1);
  // Rows that see nothing: a finite row instead, whose result is set to 0.
  const Tensor none = (lse == -kInfinity).unsqueeze(-1);
  const Tensor P = torch::softmax(scores.masked_fill(none, 0), -1).masked_fill(none, 0);
  const Tensor maps = mixed(P, in.after, in.layout, hidden);
  return {.out = torch::matmul(maps, v).to(in.v.scalar_type()), .lse = lse};
}

AttentionOutput multi_token_attention(const MultiTokenInput& in) {
  check(in);
  if (in.q.is_cuda()) {
    const auto refused = [&](AttentionPath path) {
      return path == AttentionPath::kHopper ? multi_token_gpu_refuses(in) : std::string();
    };
    switch (attention_path("multi_token_attention", device_path(in.q), refused)) {
      case AttentionPath::kHopper: return multi_token_gpu(in);
      case AttentionPath::kPortable:
        if (takes_multi_token_wide(in)) return {.out = multi_token_wide(in), .lse = {}};
        return multi_token_strips(in);
      case AttentionPath::kReference: return multi_token_attention_reference(in);
    }
  }
  if (!takes_multi_token_kernels(in)) return multi_token_attention_reference(in);
  MultiTokenInput clean = in;
  clean.k = without_invalid(in.k, in.key_valid);
  clean.v = without_invalid(in.v, in.key_valid);
  return multi_token_kernels(clean);
}

}  // namespace sigma
