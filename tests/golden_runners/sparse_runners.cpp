// nsa_*, vsa_*: block lists, scores and the block-sparse operator; select_*: diverse selection.
#include <torch/autograd.h>
#include <torch/types.h>

#include "sigma/attention/selection.h"
#include "tests/golden_runners/attention_inputs.h"

namespace sigma::golden {
namespace {

using torch::Tensor;

constexpr double kBound = 1e-11;     // outputs: float64 throughout
constexpr double kGradBound = 2e-7;  // gradients are stored in float32

// An operator call on copies of q, k, v that collect gradients, against the stored results.
void check(const GoldenFile& file, Report& report, const SparseCall& call) {
  BlockSparseInput in = call.in;
  const Tensor q = in.q.detach().requires_grad_();
  const Tensor k = in.k.detach().requires_grad_();
  const Tensor v = in.v.detach().requires_grad_();
  in.q = q;
  // Lists of a query head each: keys and values a head too.
  const int64_t copies = in.index.size(1) / k.size(1);
  in.k = k.repeat_interleave(copies, 1);
  in.v = v.repeat_interleave(copies, 1);
  const AttentionOutput out = block_sparse_attention(in);
  report.relative("out" + call.suffix, out.out, file.get("out" + call.suffix), kBound);
  if (file.has("lse" + call.suffix))
    report.relative("lse" + call.suffix, out.lse, file.get("lse" + call.suffix), kBound);
  (out.out * file.get("grad_out" + call.suffix)).sum().backward();
  const auto gradient = [&](const std::string& name, const Tensor& x) {
    if (file.has(name)) report.relative(name, x.grad(), file.get(name), kGradBound);
  };
  gradient(call.q_grad, q);
  gradient(call.k_grad, k);
  gradient(call.v_grad, v);
}

void check_lists(const GoldenFile& file, const Tensor& scores, Report& report) {
  const Json options = sparse_options(file);
  const BlockGeometry geometry =
      block_geometry({.grid = {1, 1, scores.size(2)}}, {1, 1, whole(options, "block", 64)});
  const Tensor index = select_blocks(golden_selection(options), geometry, {.causal = true}, scores);
  report.exact("index", index, file.get("index"));
}

// The branches of a layer with given gates; lists from p_cmp.
void run_branches(const GoldenFile& file, Report& report) {
  const Tensor q = file.get("q").requires_grad_();
  const Tensor k = file.get("k").requires_grad_();
  const Tensor v = file.get("v").requires_grad_();
  check_lists(file, file.get("p_cmp"), report);
  std::vector<std::pair<std::string, Tensor>> parts;
  for (const Branch& branch : branches(file, q, k, v))
    parts.emplace_back(branch.gate, block_sparse_attention(branch.in).out);
  Tensor out;
  std::vector<Tensor> gates;
  for (const auto& [gate, part] : parts) {
    gates.push_back(file.get(gate).requires_grad_());
    const Tensor term = part * gates.back().unsqueeze(-1);
    out = out.defined() ? out + term : term;
  }
  report.relative("out", out, file.get("out"), kBound);
  (out * file.get("grad_out")).sum().backward();
  for (size_t i = 0; i < parts.size(); ++i)
    report.relative("grad_" + parts[i].first, gates[i].grad(), file.get("grad_" + parts[i].first),
                    kGradBound);
  report.relative("grad_q", q.grad(), file.get("grad_q"), kGradBound);
  report.relative("grad_k", k.grad(), file.get("grad_k"), kGradBound);
  report.relative("grad_v", v.grad(), file.get("grad_v"), kGradBound);
}

void run_eq9(const GoldenFile& file, Report& report) {
  const int64_t N = whole(sparse_options(file), "N", 400);
  for (const std::string& name : file.names()) {
    if (!name.starts_with("p_cmp_")) continue;
    const std::string sizes = name.substr(6);
    int64_t size = 0, stride = 0, block = 0;
    std::sscanf(sizes.c_str(), "%ld_%ld_%ld", &size, &stride, &block);
    const Tensor expected = file.get("p_slc_" + sizes);
    const Tensor actual =
        block_scores(file.get(name), N, size, stride, block).slice(-1, 0, expected.size(-1));
    report.relative("p_slc_" + sizes, actual, expected, 8 * kEps32);
    const Tensor wrong = file.get("wrong_0based_" + sizes);
    const bool same = (wrong - expected).abs().max().item<double>() < 1e-6;
    report.is_true("wrong_0based_" + sizes + " must not match",
                   same || (actual - wrong).abs().max().item<double>() > 1e-3);
  }
}

}  // namespace

void run_sparse(const GoldenFile& file, Report& report) {
  if (file.path().stem() == "nsa_eq9_overlap") return run_eq9(file, report);
  if (!file.has("index") || !file.has("q")) throw Skip{"attention sparse module"};
  if (file.has("gate_cmp")) return run_branches(file, report);
  const Json options = sparse_options(file);
  if (file.has("p_cmp") && file.has("p_slc")) {
    const Tensor p_cmp = file.get("p_cmp");
    const Tensor scores =
        block_scores(p_cmp, whole(options, "N", 0), whole(options, "compress_size", 0),
                     whole(options, "compress_stride", 0), whole(options, "block", 0));
    const Tensor stored = file.get(file.has("p_slc_all_blocks") ? "p_slc_all_blocks" : "p_slc");
    report.relative("p_slc", scores.slice(-1, 0, stored.size(-1)), stored, kBound);
    if (!file.has("tile_index")) check_lists(file, scores, report);
  } else if (file.has("p")) {
    check_lists(file, file.get("p"), report);
  }
  const std::vector<SparseCall> calls = sparse_calls(file);
  if (calls.empty()) throw Skip{"attention sparse module"};
  for (const SparseCall& call : calls) check(file, report, call);
  if (file.has("grad_out_win")) report.skip("attention window_radius");
}

void run_tile_order(const GoldenFile& file, Report& report) {
  for (const std::string& name : file.names()) {
    if (!name.starts_with("order_")) continue;
    const std::string sizes = name.substr(6);
    Grid grid;
    Grid block;
    std::sscanf(sizes.c_str(), "%ldx%ldx%ld_%ldx%ldx%ld", &grid.frames, &grid.height, &grid.width,
                &block.frames, &block.height, &block.width);
    const BlockGeometry geometry = block_geometry({.grid = grid}, block);
    report.exact(name, geometry.order, file.get(name));
    report.exact("inverse_" + sizes, geometry.inverse, file.get("inverse_" + sizes));
    report.exact("kv_start_" + sizes, geometry.start, file.get("kv_start_" + sizes));
  }
}

void run_selection(const GoldenFile& file, Report& report) {
  const bool dart = file.path().stem().string().find("dart") != std::string::npos;
  const char* name = dart ? "features_image_only" : "features";
  if (!file.has(name) || file.has("pivots_text")) throw Skip{"selection with text pivots"};
  const Tensor features = file.get(name);
  const int64_t W = features.size(0);
  const BlockGeometry geometry = block_geometry({.grid = {1, 1, W}}, {1, 1, 1});
  SelectionConfig config;
  config.init_blocks = 0;
  config.local_radius = -1;
  config.pool_factor = 0;
  const auto check = [&](const std::string& chosen) {
    config.num_selected = file.get(chosen).size(0);
    const Tensor index = select_blocks(config, geometry, {.tiles = true}, torch::ones({1, 1, 1, W}),
                                       features.view({1, 1, W, -1}));
    report.exact(chosen, index.flatten(), std::get<0>(file.get(chosen).sort()));
  };
  if (dart) {
    config.strategy = "dart";
    config.pivot = "key_norm";
    config.num_pivots = file.get("pivots_image_only").size(0);
    check("selected_image_only");
    return;
  }
  config.strategy = "max_min";
  config.alpha = 0;
  for (const std::string& chosen : file.names()) {
    if (chosen.starts_with("selected_")) check(chosen);
  }
}

}  // namespace sigma::golden
