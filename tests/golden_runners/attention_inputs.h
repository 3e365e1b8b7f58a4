// Golden files of attention as inputs of the operators.
#pragma once

#include <torch/types.h>

#include <string>
#include <vector>

#include "sigma/attention/block_sparse.h"
#include "sigma/attention/multi_token_op.h"
#include "sigma/attention/selection.h"
#include "tests/golden_runners/golden.h"

namespace sigma::golden {

/// The attention files keep their options one by one in the metadata.
inline Json sparse_options(const GoldenFile& file) {
  Json options = Json::object();
  for (const char* key : {"N", "block", "causal", "compress_size", "compress_stride", "init_blocks",
                          "local_radius", "num_selected", "window"})
    options[key] = file.meta(key);
  return options;
}

inline torch::Tensor lists(const GoldenFile& file, const std::string& name) {
  return file.get(name).to(torch::kInt).contiguous();
}

inline BlockSparseInput sparse_input(const GoldenFile& file, const torch::Tensor& index) {
  const Json options = sparse_options(file);
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

/// Compressed keys ck and values cv as the keys of the operator: a window is seen once its last
/// token is.
inline BlockSparseInput coarse_input(const torch::Tensor& q, const torch::Tensor& ck,
                                     const torch::Tensor& cv, int64_t size, int64_t stride) {
  BlockSparseInput in{.q = q, .k = ck, .v = cv};
  const int64_t windows = ck.size(2);
  in.kv_start = block_starts(windows, 64);
  in.index = torch::arange(in.kv_start.size(0) - 1, torch::kInt)
                 .to(q.device())
                 .expand({q.size(0), ck.size(1), q.size(2), -1});
  in.rank_q = torch::arange(q.size(2));
  in.rank_k = torch::arange(windows) * stride + (size - 1);
  return in;
}

/// A call of the operator that a file has results of.
struct SparseCall {
  BlockSparseInput in;  // where each query head has lists, so many heads of k and v: repeat them
  std::string suffix;   // of out, lse and grad_out
  std::string q_grad = "grad_q", k_grad = "grad_k", v_grad = "grad_v";
};

inline std::vector<SparseCall> sparse_calls(const GoldenFile& file) {
  std::vector<SparseCall> calls;
  const Json options = sparse_options(file);
  if (file.has("out_cmp") && file.has("grad_out_cmp"))
    calls.push_back(
        {coarse_input(file.get("q"), file.get("ck"), file.get("cv"),
                      whole(options, "compress_size", 0), whole(options, "compress_stride", 0)),
         "_cmp", "grad_q_cmp", "grad_ck", "grad_cv"});
  if (file.has("grad_out_slc")) {
    const bool tiles = file.has("tile_index");
    SparseCall call{sparse_input(file, lists(file, tiles ? "tile_index" : "index")), "_slc",
                    "grad_q_slc"};
    if (tiles) call.in.q_start = call.in.kv_start;
    if (file.has("grad_k_slc")) {
      call.k_grad = "grad_k_slc";
      call.v_grad = "grad_v_slc";
    }
    calls.push_back(call);
  } else if (file.has("lse")) {
    calls.push_back({sparse_input(file, lists(file, "index")), ""});
    if (file.has("index_unsorted"))
      calls.push_back({sparse_input(file, lists(file, "index_unsorted")), ""});
  }
  return calls;
}

/// A branch of a layer: a call and the name of its gate.
struct Branch {
  std::string gate;
  BlockSparseInput in;
};

/// Of a file that has gates: means of complete blocks, lists, a window.
inline std::vector<Branch> branches(const GoldenFile& file, const torch::Tensor& q,
                                    const torch::Tensor& k, const torch::Tensor& v) {
  const Json options = sparse_options(file);
  const int64_t size = whole(options, "block", 0);
  const int64_t complete = k.size(2) / size;
  const auto means = [&](const torch::Tensor& x) {
    return x.slice(2, 0, complete * size).unflatten(2, {complete, size}).mean(3);
  };
  BlockSparseInput selected = sparse_input(file, lists(file, "index"));
  selected.q = q;
  selected.k = k;
  selected.v = v;
  std::vector<Branch> out = {{"gate_cmp", coarse_input(q, means(k), means(v), size, size)},
                             {"gate_slc", selected}};
  if (file.has("gate_win")) {
    BlockSparseInput near = selected;
    near.window = whole(options, "window", 0);
    near.q_start = near.kv_start;
    const BlockGeometry geometry = block_geometry({.grid = {1, 1, q.size(2)}}, {1, 1, size});
    const torch::Tensor tiles = window_lists(geometry, near.window).to(q.device());
    near.index = tiles.expand({q.size(0), k.size(1), tiles.size(0), tiles.size(1)});
    out.push_back({"gate_win", near});
  }
  return out;
}

inline SelectionConfig golden_selection(const Json& options) {
  SelectionConfig config;
  config.num_selected = whole(options, "num_selected", 16);
  config.init_blocks = whole(options, "init_blocks", 0);
  config.local_radius = whole(options, "local_radius", -1);
  return config;
}

inline std::vector<GridStep> key_steps(int64_t count, const std::string& pad) {
  const int64_t first = pad == "left" ? 0 : pad == "right" ? 1 - count : -(count / 2);
  std::vector<GridStep> steps;
  for (int64_t b = first; b < first + count; ++b) steps.push_back({0, 0, b});
  return steps;
}

/// `get(name)`: the file's tensor, or none.
template <typename Get>
ScoreMixing golden_mixing(const GoldenFile& file, Get& get, const std::string& kernel,
                          const std::string& side) {
  ScoreMixing m;
  m.kernel = get(kernel);
  if (m.kernel.defined()) {
    m.queries = past_steps({1, 1, m.kernel.size(1)});
    const Json pad = file.meta("pad_key");
    m.keys = key_steps(m.kernel.size(2), pad.is_string() ? pad.get<std::string>() : "both");
  }
  const torch::Tensor mix = get(side + "_mix");  // [H,H], block diagonal
  if (!mix.defined()) return m;
  const Json group = file.meta("head_group_" + side);
  const int64_t c = group.is_number() ? group.get<int64_t>() : 0;
  std::vector<torch::Tensor> blocks;
  for (int64_t h = 0; h < mix.size(0); h += c)
    blocks.push_back(mix.slice(0, h, h + c).slice(1, h, h + c));
  m.mix = torch::stack(blocks);
  return m;
}

template <typename Get>
MultiTokenInput golden_multi_token(const GoldenFile& file, Get& get, const torch::Tensor& q,
                                   const torch::Tensor& k, const torch::Tensor& v) {
  const int64_t copies = q.size(1) / k.size(1);
  MultiTokenInput in{.q = q,
                     .k = k.repeat_interleave(copies, 1),
                     .v = v.repeat_interleave(copies, 1),
                     .layout = {.grid = {1, 1, q.size(2)}}};
  const Json causal = file.meta("causal");
  if (causal.is_boolean() && causal.get<bool>()) in.layout.pattern = Pattern::kCausal;
  in.before = golden_mixing(file, get, "theta", "pre");
  in.after = golden_mixing(file, get, "phi", "post");
  if (file.has("key_valid")) in.key_valid = file.get("key_valid").to(torch::kBool);
  return in;
}

}  // namespace sigma::golden
