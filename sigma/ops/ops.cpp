// torch.ops.sigma: the operators that are worth calling from Python, with shapes for Meta tensors.
// Each runs the C++ function of its name (see the headers); python/sigma/__init__.py loads them.
#include <torch/library.h>
#include <torch/types.h>

#include <array>
#include <numeric>
#include <utility>

#include "sigma/attention/block_plan.h"
#include "sigma/attention/block_sparse.h"
#include "sigma/attention/dense.h"
#include "sigma/attention/multi_token_op.h"
#include "sigma/attention/selection.h"
#include "sigma/attention/short_attention.h"
#include "sigma/base/error.h"
#include "sigma/generator/grouped_mmd.h"
#include "sigma/moe/experts.h"
#include "sigma/nn/gated_norm.h"
#include "sigma/ops/differentiable.h"
#include "sigma/tokenizer/vector_quantizer.h"

namespace sigma {
namespace {

using torch::Tensor;
using Optional = std::optional<Tensor>;
using Ints = torch::IntArrayRef;

Tensor or_undefined(const Optional& x) { return x.value_or(Tensor()); }

torch::ScalarType wide_dtype(const Tensor& x) {
  return x.scalar_type() == torch::kDouble ? torch::kDouble : torch::kFloat;
}

TokenLayout layout_of(Ints grid, int64_t before, int64_t after, const std::string& pattern) {
  SIGMA_CHECK(kUsage, !grid.empty() && grid.size() <= 3,
              "grid: expected 1 to 3 sides (frames, rows, columns), got {}", grid.size());
  const Grid sides = box_of_sides("grid", grid.vec(), static_cast<int>(grid.size()));
  for (const auto& [name, value] : {std::pair{"full", Pattern::kFull},
                                    {"causal", Pattern::kCausal},
                                    {"causal_after", Pattern::kCausalAfter}})
    if (pattern == name)
      return {.before = before, .grid = sides, .after = after, .pattern = value, .visible = {}};
  fail(ErrorKind::kUsage, "pattern: expected full, causal or causal_after, got {}", pattern);
}

// ---- block_sparse_attention: attention/block_sparse.h ----

std::tuple<Tensor, Tensor> block_sparse(const Tensor& q, const Tensor& k, const Tensor& v,
                                        const Tensor& index, const Tensor& kv_start,
                                        const Optional& q_start, const Optional& rank_q,
                                        const Optional& rank_k, int64_t window,
                                        const Optional& key_valid, double scale) {
  const AttentionOutput out = block_sparse_attention({.q = q,
                                                      .k = k,
                                                      .v = v,
                                                      .index = index,
                                                      .kv_start = kv_start,
                                                      .q_start = or_undefined(q_start),
                                                      .rank_q = or_undefined(rank_q),
                                                      .rank_k = or_undefined(rank_k),
                                                      .window = window,
                                                      .key_valid = or_undefined(key_valid),
                                                      .scale = scale});
  return {out.out.contiguous(), out.lse.contiguous()};
}

std::tuple<Tensor, Tensor> block_sparse_meta(const Tensor& q, const Tensor& k, const Tensor& v,
                                             const Tensor&, const Tensor&, const Optional&,
                                             const Optional&, const Optional&, int64_t,
                                             const Optional&, double) {
  return {
      at::empty_symint({q.sym_size(0), q.sym_size(1), q.sym_size(2), v.sym_size(3)}, v.options()),
      at::empty_symint({q.sym_size(0), q.sym_size(1), q.sym_size(2)},
                       q.options().dtype(wide_dtype(q)))};
}

// ---- multi_token_attention: attention/multi_token_op.h ----

ScoreMixing mixing(const Optional& kernel, Ints queries, Ints keys, const Optional& mix,
                   const std::string& query_side, int axes) {
  ScoreMixing out{.kernel = or_undefined(kernel), .mix = or_undefined(mix)};
  if (!kernel) return out;
  SIGMA_CHECK(kUsage, query_side == "centre" || query_side == "past",
              "query_side: expected centre or past, got {}", query_side);
  const Grid side = box_of_sides("queries", queries.vec(), axes);
  out.queries = query_side == "past" ? past_steps(side) : centred_steps(side, "queries");
  out.keys = centred_steps(box_of_sides("keys", keys.vec(), axes), "keys");
  return out;
}

Tensor multi_token(const Tensor& q, const Tensor& k, const Tensor& v, Ints grid,
                   const Optional& pre_kernel, Ints pre_queries, Ints pre_keys,
                   const Optional& pre_mix, const Optional& post_kernel, Ints post_queries,
                   Ints post_keys, const Optional& post_mix, const Optional& key_valid,
                   c10::string_view query_side, int64_t before, int64_t after,
                   c10::string_view pattern, double scale) {
  const TokenLayout layout = layout_of(grid, before, after, std::string(pattern));
  const std::string side(query_side);
  const int axes = static_cast<int>(grid.size());
  return multi_token_attention(
             {.q = q,
              .k = k,
              .v = v,
              .layout = layout,
              .before = mixing(pre_kernel, pre_queries, pre_keys, pre_mix, side, axes),
              .after = mixing(post_kernel, post_queries, post_keys, post_mix, side, axes),
              .key_valid = or_undefined(key_valid),
              .scale = scale})
      .out.contiguous();
}

Tensor multi_token_meta(const Tensor& q, const Tensor&, const Tensor& v, Ints, const Optional&,
                        Ints, Ints, const Optional&, const Optional&, Ints, Ints, const Optional&,
                        const Optional&, c10::string_view, int64_t, int64_t, c10::string_view,
                        double) {
  return at::empty_symint({q.sym_size(0), q.sym_size(1), q.sym_size(2), v.sym_size(3)},
                          v.options());
}

// ---- experts: moe/experts.h ----

Tensor experts(const Tensor& x, const Tensor& w_in, const Tensor& w_out, const Optional& b_in,
               const Optional& b_out, const Tensor& pair_token, const Tensor& pair_expert,
               const Tensor& pair_weight, c10::string_view activation, c10::string_view engine) {
  const Plan plan = make_plan(pair_token, pair_expert, x.size(0), w_in.size(0));
  return run_experts(std::string(engine), x,
                     {.w_in = w_in,
                      .w_out = w_out,
                      .b_in = or_undefined(b_in),
                      .b_out = or_undefined(b_out),
                      .activation = std::string(activation)},
                     pair_weight, plan)
      .contiguous();
}

Tensor experts_meta(const Tensor& x, const Tensor&, const Tensor&, const Optional&, const Optional&,
                    const Tensor&, const Tensor&, const Tensor&, c10::string_view,
                    c10::string_view) {
  return torch::empty_like(x, torch::MemoryFormat::Contiguous);
}

// ---- gated_norm: nn/gated_norm.h ----

std::tuple<Tensor, Tensor> gated(const Tensor& x, const Tensor& a, const Tensor& gate,
                                 const Tensor& shift, const Tensor& scale, double eps) {
  const GatedNorm out = gated_norm(x, a, gate, shift, scale, eps);
  return {out.h.contiguous(), out.y.contiguous()};
}

std::tuple<Tensor, Tensor> gated_meta(const Tensor& x, const Tensor&, const Tensor&, const Tensor&,
                                      const Tensor&, double) {
  const auto like = [&](torch::ScalarType dtype) {
    return torch::empty_like(x, x.options().dtype(dtype), torch::MemoryFormat::Contiguous);
  };
  return {like(x.scalar_type()), like(wide_dtype(x))};
}

// ---- short_attention: attention/short_attention.h, attention/dense.h beyond its sizes ----

Tensor packed_attention(const Tensor& qkv, int64_t num_heads) {
  SIGMA_CHECK(kUsage, qkv.dim() == 3 && num_heads >= 1 && qkv.size(2) % (3 * num_heads) == 0,
              "short_attention: expected qkv [B,N,3C], C a multiple of {} heads, got [{}]",
              num_heads, fmt::join(qkv.sizes(), ","));
  if (takes_short_attention(qkv)) return short_attention(qkv, num_heads);
  const auto parts = qkv.unflatten(2, {3, num_heads, -1}).permute({2, 0, 3, 1, 4});
  return dense_attention(parts[0], parts[1], parts[2], /*causal=*/false)
      .transpose(1, 2)
      .flatten(2)
      .contiguous();
}

Tensor packed_attention_meta(const Tensor& qkv, int64_t) {
  return at::empty_symint({qkv.sym_size(0), qkv.sym_size(1), qkv.sym_size(2) / 3}, qkv.options());
}

// ---- grouped_mmd: generator/grouped_mmd.h ----

std::tuple<Tensor, Tensor, Tensor, Tensor> mmd(const Tensor& y, const Tensor& z,
                                               const Tensor& kappa, c10::string_view kind,
                                               double distance_floor) {
  const GroupedMmd out = grouped_mmd(y, z, kappa, std::string(kind), distance_floor);
  return {out.mmd, out.yy_sim, out.zz_sim, out.yz_sim};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> mmd_meta(const Tensor& y, const Tensor&, const Tensor&,
                                                    c10::string_view, double) {
  const auto groups = [&] {
    return at::empty_symint({y.sym_size(0)}, y.options().dtype(torch::kDouble));
  };
  return {groups(), groups(), groups(), groups()};
}

// ---- choices without gradients: nearest_codes (tokenizer/vector_quantizer.h), select_blocks
// (attention/selection.h) ----

Tensor nearest_codes_meta(const Tensor& z, const Tensor&) {
  return at::empty_symint({z.sym_size(0)}, z.options().dtype(torch::kLong));
}

Tensor select(const Tensor& scores, const Optional& keys, Ints grid, Ints block,
              int64_t num_selected, c10::string_view strategy, bool tiles, bool causal,
              int64_t before, int64_t after, int64_t init_blocks, int64_t local_radius) {
  SelectionConfig config;
  config.num_selected = num_selected;
  config.strategy = std::string(strategy);
  config.init_blocks = init_blocks;
  config.local_radius = local_radius;
  const TokenLayout layout = layout_of(grid, before, after, causal ? "causal" : "full");
  const Grid box = box_of_sides("block", block.vec(), static_cast<int>(grid.size()));
  return select_blocks(config, block_geometry(layout, box), {.tiles = tiles, .causal = causal},
                       scores, or_undefined(keys))
      .contiguous();
}

Tensor select_meta(const Tensor& scores, const Optional&, Ints, Ints, int64_t num_selected,
                   c10::string_view, bool, bool, int64_t, int64_t, int64_t, int64_t) {
  return at::empty_symint({scores.sym_size(0), scores.sym_size(1), scores.sym_size(2),
                           scores.sym_size(3).min(num_selected)},
                          scores.options().dtype(torch::kInt));
}

constexpr std::array kDifferentiable = {"block_sparse_attention",
                                        "multi_token_attention",
                                        "experts",
                                        "gated_norm",
                                        "short_attention",
                                        "grouped_mmd"};

}  // namespace

TORCH_LIBRARY(sigma, m) {
  define_differentiable(
      m, "block_sparse_attention",
      "Tensor q, Tensor k, Tensor v, Tensor index, Tensor kv_start, Tensor? q_start=None, Tensor? "
      "rank_q=None, Tensor? rank_k=None, int window=0, Tensor? key_valid=None, float scale=0.",
      "(Tensor, Tensor)");
  define_differentiable(
      m, "multi_token_attention",
      "Tensor q, Tensor k, Tensor v, int[] grid, Tensor? pre_kernel=None, int[] pre_queries=[], "
      "int[] pre_keys=[], Tensor? pre_mix=None, Tensor? post_kernel=None, int[] post_queries=[], "
      "int[] post_keys=[], Tensor? post_mix=None, Tensor? key_valid=None, str "
      "query_side=\"centre\", int before=0, int after=0, str pattern=\"full\", float scale=0.",
      "Tensor");
  define_differentiable(
      m, "experts",
      "Tensor x, Tensor w_in, Tensor w_out, Tensor? b_in, Tensor? b_out, Tensor pair_token, Tensor "
      "pair_expert, Tensor pair_weight, str activation=\"swiglu\", str engine=\"auto\"",
      "Tensor");
  define_differentiable(
      m, "gated_norm",
      "Tensor x, Tensor a, Tensor gate, Tensor shift, Tensor scale, float eps=1e-6",
      "(Tensor, Tensor)");
  define_differentiable(m, "short_attention", "Tensor qkv, int num_heads", "Tensor");
  define_differentiable(
      m, "grouped_mmd",
      "Tensor y, Tensor z, Tensor kappa, str kind=\"laplace\", float distance_floor=1e-6",
      "(Tensor, Tensor, Tensor, Tensor)");
  m.def("nearest_codes(Tensor z, Tensor codes) -> Tensor");
  m.def(
      "select_blocks(Tensor scores, Tensor? keys, int[] grid, int[] block, int num_selected, str "
      "strategy=\"top_n\", bool tiles=True, bool causal=False, int before=0, int after=0, int "
      "init_blocks=-1, int local_radius=-2) -> Tensor");
}

TORCH_LIBRARY_IMPL(sigma, CompositeExplicitAutograd, m) {
  m.impl("block_sparse_attention", block_sparse);
  m.impl("multi_token_attention", multi_token);
  m.impl("experts", experts);
  m.impl("gated_norm", gated);
  m.impl("short_attention", packed_attention);
  m.impl("grouped_mmd", mmd);
  m.impl("nearest_codes", nearest_codes);
  m.impl("select_blocks", select);
  for (const char* name : kDifferentiable) implement_backward(m, name);
}

TORCH_LIBRARY_IMPL(sigma, Meta, m) {
  m.impl("block_sparse_attention", block_sparse_meta);
  m.impl("multi_token_attention", multi_token_meta);
  m.impl("experts", experts_meta);
  m.impl("gated_norm", gated_meta);
  m.impl("short_attention", packed_attention_meta);
  m.impl("grouped_mmd", mmd_meta);
  m.impl("nearest_codes", nearest_codes_meta);
  m.impl("select_blocks", select_meta);
  for (const char* name : kDifferentiable) implement_backward_meta(m, name);
}

}  // namespace sigma
