// nsa_*, vsa_*: block lists, scores and the block-sparse operator; select_*: diverse selection.
#include <torch/autograd.h>
#include <torch/types.h>

#include "sigma/attention/block_sparse.h"
#include "sigma/attention/selection.h"
#include "tests/golden_runners/golden.h"

namespace sigma::golden {
namespace {

using torch::Tensor;

/// The attention files keep their options one by one in the metadata.
Json options_of(const GoldenFile& file) {
  Json options = Json::object();
  for (const char* key : {"N", "block", "causal", "compress_size", "compress_stride", "init_blocks",
                          "local_radius", "num_selected", "window"})
    options[key] = file.meta(key);
  return options;
}

constexpr double kBound = 1e-11;     // outputs: float64 throughout
constexpr double kGradBound = 2e-7;  // gradients are stored in float32

Tensor lists(const GoldenFile& file, const std::string& name) {
  return file.get(name).to(torch::kInt).contiguous();
}

// Copies of q, k, v that collect gradients, an operator call, and the stored results.
struct Check {
  const GoldenFile& file;
  Report& report;
  BlockSparseInput in;
  std::string suffix;  // of out, lse and grad_out
  std::string q_grad = "grad_q", k_grad = "grad_k", v_grad = "grad_v";

  void run() {
    const Tensor q = in.q.detach().requires_grad_();
    const Tensor k = in.k.detach().requires_grad_();
    const Tensor v = in.v.detach().requires_grad_();
    in.q = q;
    // Lists of a query head each: keys and values a head too.
    const int64_t copies = in.index.size(1) / k.size(1);
    in.k = k.repeat_interleave(copies, 1);
    in.v = v.repeat_interleave(copies, 1);
    const AttentionOutput out = block_sparse_attention(in);
    report.relative("out" + suffix, out.out, file.get("out" + suffix), kBound);
    if (file.has("lse" + suffix))
      report.relative("lse" + suffix, out.lse, file.get("lse" + suffix), kBound);
    (out.out * file.get("grad_out" + suffix)).sum().backward();
    const auto gradient = [&](const std::string& name, const Tensor& x) {
      if (file.has(name)) report.relative(name, x.grad(), file.get(name), kGradBound);
    };
    gradient(q_grad, q);
    gradient(k_grad, k);
    gradient(v_grad, v);
  }
};

BlockSparseInput input_of(const GoldenFile& file, const Tensor& index) {
  const Json options = options_of(file);
  BlockSparseInput in{.q = file.get("q"), .k = file.get("k"), .v = file.get("v"), .index = index};
  in.kv_start = file.has("kv_start") ? file.get("kv_start").cpu()
                                     : block_starts(in.k.size(2), whole(options, "block", 64));
  if (file.has("q_start")) in.q_start = file.get("q_start").cpu();
  if (text(options, "causal", "none") == "token") {
    in.rank_q = torch::arange(in.q.size(2));
    in.rank_k = torch::arange(in.k.size(2));
  }
  return in;
}

SelectionConfig selection_of(const Json& options) {
  SelectionConfig config;
  config.num_selected = whole(options, "num_selected", 16);
  config.init_blocks = whole(options, "init_blocks", 0);
  config.local_radius = whole(options, "local_radius", -1);
  return config;
}

void check_lists(const GoldenFile& file, const Tensor& scores, Report& report) {
  const Json options = options_of(file);
  const BlockGeometry geometry =
      block_geometry({.grid = {1, 1, scores.size(2)}}, {1, 1, whole(options, "block", 64)});
  const Tensor index = select_blocks(selection_of(options), geometry, {.causal = true}, scores);
  report.exact("index", index, file.get("index"));
}

// Compressed keys as the keys of the operator: a window is seen once its last token is.
void check_coarse(const GoldenFile& file, Report& report) {
  const Json options = options_of(file);
  const int64_t size = whole(options, "compress_size", 0);
  const int64_t stride = whole(options, "compress_stride", 0);
  BlockSparseInput in{.q = file.get("q"), .k = file.get("ck"), .v = file.get("cv")};
  const int64_t windows = in.k.size(2);
  in.kv_start = block_starts(windows, 64);
  in.index = torch::arange(in.kv_start.size(0) - 1, torch::kInt)
                 .to(device())
                 .expand({in.q.size(0), in.k.size(1), in.q.size(2), -1});
  in.rank_q = torch::arange(in.q.size(2));
  in.rank_k = torch::arange(windows) * stride + (size - 1);
  Check{file, report, in, "_cmp", "grad_q_cmp", "grad_ck", "grad_cv"}.run();
}

// The branches of a layer with given gates: means of complete blocks, lists from p_cmp, a window.
void run_branches(const GoldenFile& file, Report& report) {
  const Json options = options_of(file);
  const Tensor q = file.get("q").requires_grad_();
  const Tensor k = file.get("k").requires_grad_();
  const Tensor v = file.get("v").requires_grad_();
  const int64_t size = whole(options, "block", 0);
  const int64_t complete = k.size(2) / size;
  const auto means = [&](const Tensor& x) {
    return x.slice(2, 0, complete * size).unflatten(2, {complete, size}).mean(3);
  };
  BlockSparseInput coarse{.q = q, .k = means(k), .v = means(v)};
  coarse.kv_start = block_starts(complete, 64);
  coarse.index = torch::zeros({q.size(0), k.size(1), q.size(2), 1}, torch::kInt).to(q.device());
  coarse.rank_q = torch::arange(q.size(2));
  coarse.rank_k = torch::arange(complete) * size + (size - 1);

  check_lists(file, file.get("p_cmp"), report);
  BlockSparseInput selected = input_of(file, lists(file, "index"));
  selected.q = q;
  selected.k = k;
  selected.v = v;
  std::vector<std::pair<std::string, Tensor>> parts = {
      {"gate_cmp", block_sparse_attention(coarse).out},
      {"gate_slc", block_sparse_attention(selected).out}};
  if (file.has("gate_win")) {
    BlockSparseInput near = selected;
    near.window = whole(options, "window", 0);
    near.q_start = near.kv_start;
    const BlockGeometry geometry = block_geometry({.grid = {1, 1, q.size(2)}}, {1, 1, size});
    const Tensor tiles = window_lists(geometry, near.window).to(q.device());
    near.index = tiles.expand({q.size(0), k.size(1), tiles.size(0), tiles.size(1)});
    parts.emplace_back("gate_win", block_sparse_attention(near).out);
  }
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
  const int64_t N = whole(options_of(file), "N", 400);
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
  const Json options = options_of(file);
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
  if (file.has("out_cmp") && file.has("grad_out_cmp")) check_coarse(file, report);
  if (file.has("grad_out_slc")) {
    const bool tiles = file.has("tile_index");
    Check check{file, report, input_of(file, lists(file, tiles ? "tile_index" : "index")), "_slc",
                "grad_q_slc"};
    if (tiles) check.in.q_start = check.in.kv_start;
    if (file.has("grad_k_slc")) {
      check.k_grad = "grad_k_slc";
      check.v_grad = "grad_v_slc";
    }
    check.run();
    if (file.has("grad_out_win")) report.skip("attention window_radius");
  } else if (file.has("lse")) {
    Check{file, report, input_of(file, lists(file, "index")), ""}.run();
    if (file.has("index_unsorted"))
      Check{file, report, input_of(file, lists(file, "index_unsorted")), ""}.run();
  } else {
    throw Skip{"attention sparse module"};
  }
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
