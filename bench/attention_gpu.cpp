// Block-sparse and multi-token attention on an NVIDIA GPU in bfloat16, one table a case in one run:
// ours, torch's dense attention through cuDNN, FlexAttention, and published kernels.
//   build-cuda/bench/attention_gpu [CASE ...] [--json] [--check] [--python PATH] [--peers DIR]
// Cases: see kSparse below (coherent: 90 % of a list is common to 64 neighbouring tokens), layer and
// multi-token; default all. --python (with a full torch) adds bench/attention_gpu.py, which measures
// FlexAttention and the checkouts in DIR on the same lists.
//
// TFLOP/s count listed work: 2 (D + Dv) operations a pair of query and visible listed key, 2.5 times
// that backward; dense attention does more than it is credited for. GB: the most that a forward and
// a backward take on top of the inputs. Errors: |x - exact| / |exact| of the last key/value head,
// exact in float64; of the output, and the worst gradient's. --check exits 1 when ours misses a goal
// (for one H100), or an error is above 0.02.
#include <ATen/Context.h>
#include <torch/types.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "bench/attention_cases.h"
#include "bench/attention_table.h"
#include "bench/gpu_timing.h"
#include "sigma/attention/block_sparse_gpu.h"
#include "sigma/attention/dense.h"
#include "sigma/attention/multi_token_op.h"
#include "sigma/attention/multi_token_wide.h"
#include "sigma/attention/sparse.h"

namespace {

using namespace sigma::bench;
using torch::Tensor;

const std::vector<SparseCase> kSparse = {
    {"tiles-128", "tiles, full, N 40960 H 16 D 128, 64 of 640 blocks",  //
     16, 16, 40960, 128, 64, true, 0, 2.4, 7.9},
    {"tiles-64", "tiles, full, N 65536 H 16 D 64, 128 of 1024 blocks",  //
     16, 16, 65536, 64, 128, true, 0, 5.1, 15.0},
    {"groups", "token rows, causal, random lists n 16, N 65536 H 64 G 4 D 128",  //
     64, 4, 65536, 128, 16, false, 0, 15, 32},
    {"groups-coherent", "token rows, causal, coherent lists n 16, N 65536 H 64 G 4 D 128",  //
     64, 4, 65536, 128, 16, false, 0.9, 10, 32 / 1.5},
    {"heads", "token rows, causal, random lists n 16, N 32768 H 16 G 16 D 128",  //
     16, 16, 32768, 128, 16, false, 0, 5.8, 13},
    {"heads-coherent", "token rows, causal, coherent lists n 16, N 32768 H 16 G 16 D 128",  //
     16, 16, 32768, 128, 16, false, 0.9, 3.0, 7}};

struct Options {
  bool json = false, check = false;
  std::string python, peers;
  std::vector<std::string> cases;
  bool wants(const std::string& name) const {
    return cases.empty() || std::find(cases.begin(), cases.end(), name) != cases.end();
  }
};

Options parse(int argc, char** argv) {
  Options out;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--json") out.json = true;
    else if (word == "--check") out.check = true;
    else if (word == "--python" && i + 1 < argc) out.python = argv[++i];
    else if (word == "--peers" && i + 1 < argc) out.peers = argv[++i];
    else if (!word.starts_with("--")) out.cases.push_back(word);
    else
      sigma::fail(sigma::ErrorKind::kUsage,
                  "expected cases, --json, --check, --python PATH or --peers DIR, got {}", word);
  }
  std::vector<std::string> known = {"layer", "multi-token"};
  for (const SparseCase& c : kSparse) known.push_back(c.name);
  for (const std::string& name : out.cases)
    SIGMA_CHECK(kUsage, std::find(known.begin(), known.end(), name) != known.end(),
                "case: expected one of {}, got {}", fmt::join(known, ", "), name);
  return out;
}

bool inexact(const Row& r) {
  return !r.failed.empty() ||
         std::any_of(r.errors.begin(), r.errors.end(), [](double e) { return !(e < 0.02); });
}

Tensor cudnn(const Tensor& q, const Tensor& k, const Tensor& v, bool causal) {
  return std::get<0>(at::_scaled_dot_product_cudnn_attention(
      q, k, v, /*attn_bias=*/{}, /*compute_log_sumexp=*/true, /*dropout_p=*/0.0, causal));
}

Row dense_row(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& grad, bool causal) {
  const int64_t M = q.size(1) / k.size(1);
  const auto heads = [&](const Tensor& t) {
    return t.detach().repeat_interleave(M, 1).requires_grad_();
  };
  const Tensor K = heads(k), V = heads(v);
  return measure(
      causal ? "dense causal, cuDNN" : "dense, cuDNN", [&] { return cudnn(q, K, V, causal); },
      {q, K, V}, grad);
}

Table sparse_table(const SparseCase& c, const Options& options) {
  Table out{.name = c.name,
            .title = c.title,
            .goal = fmt::format("forward {:.1f} ms, backward {:.1f} ms", c.goal, c.goal_backward)};
  Tensor lists;
  {
    const SparseInputs x(c);
    lists = x.lists;
    out.flop = 4 * static_cast<double>(c.D) * listed_pairs(c, lists);
    const Tensors exact = exact_head(c, x);
    const auto check = [&](const Tensor& o, const Tensors& grads) {
      const auto last = [](const Tensor& t, int64_t heads) {
        return t[0].slice(0, t.size(1) - heads);
      };
      return std::vector<double>{relative_error(last(o, c.group()), exact[0]),
                                 relative_error(last(grads[0], c.group()), exact[1]),
                                 relative_error(last(grads[1], 1)[0], exact[2]),
                                 relative_error(last(grads[2], 1)[0], exact[3])};
    };
    const sigma::BlockSparseInput in = operator_input(c, x);
    const Tensors leaves = {x.q, x.k, x.v};
    out.rows.push_back(measure(
        "sigma", [&] { return sigma::block_sparse_attention(in).out; }, leaves, x.grad, check));
    constexpr auto kPortable = sigma::AttentionPath::kPortable;
    if (sigma::block_sparse_path(in) == sigma::AttentionPath::kHopper)
      out.rows.push_back(measure(
          "sigma, portable", [&] { return sigma::block_sparse_attention_gpu(in, kPortable).out; },
          leaves, x.grad, check));
    const Row ours = out.rows[0];
    out.missed = inexact(ours) || ours.forward > c.goal || ours.backward > c.goal_backward;
    out.rows.push_back(dense_row(x.q, x.k, x.v, x.grad, !c.tiles));
  }
  if (!options.python.empty()) {
    free_cached_memory();
    for (Row& row : python_rows(c, lists, options.python, options.peers))
      out.rows.push_back(std::move(row));
  }
  return out;
}

/// 16 x 64 x 64 tokens, 128 of 1,024 cubes of 4 x 4 x 4.
Table layer_table() {
  constexpr int64_t kHeads = 16, kDim = 64;
  const sigma::TokenLayout layout{.grid = {16, 64, 64}};
  sigma::SparseConfig config;
  config.selection.num_selected = 128;
  sigma::SparseAttention sparse(config, kHeads * kDim, kHeads, false, layout.grid);
  sigma::DenseAttention dense(kHeads * kDim, kHeads, false);
  const Tensor x = gpu_normal({1, layout.tokens(), kHeads * kDim}, 5).requires_grad_();
  const Tensor grad = gpu_normal({1, layout.tokens(), kHeads * kDim}, 6);
  const auto row = [&](const std::string& side, sigma::Attention& layer) {
    initialize(layer, 1);
    layer.to(torch::kCUDA);
    Tensors leaves = layer.parameters();
    leaves.push_back(x);
    return measure(side, [&] { return layer.forward(x, layout, nullptr, {}); }, leaves, grad);
  };
  Table out{.name = "layer",
            .title = "whole layer, 16 x 64 x 64 tokens, H 16 D 64, 1/8 of the blocks",
            .goal = "forward and backward 5 times faster than the dense layer",
            .flop = sparse.flops(layout)};
  out.rows = {row("sigma", sparse), row("dense layer, cuDNN", dense)};
  const auto both = [](const Row& r) { return r.forward + r.backward; };
  out.missed =
      inexact(out.rows[0]) || inexact(out.rows[1]) || both(out.rows[0]) > both(out.rows[1]) / 5;
  return out;
}

Table multi_token_table() {
  constexpr int64_t B = 4, H = 16, N = 4096, D = 64;
  const auto leaf = [](torch::IntArrayRef shape, uint32_t site) {
    return gpu_normal(shape, site).requires_grad_();
  };
  const Tensor q = leaf({B, H, N, D}, 7), k = leaf({B, H, N, D}, 8), v = leaf({B, H, N, D}, 9);
  const Tensor grad = gpu_normal({B, H, N, D}, 10);
  const auto kernel = [](uint32_t site) {
    return (gpu_normal({H, 6, 11}, site, torch::kFloat) * 0.2).requires_grad_();
  };
  sigma::MultiTokenInput in{.q = q, .k = k, .v = v, .layout = {.grid = {1, 1, N}}};
  in.before = {.kernel = kernel(11),
               .queries = sigma::past_steps({1, 1, 6}),
               .keys = sigma::centred_steps({1, 1, 11})};
  in.after = in.before;
  in.after.kernel = kernel(12);

  // The last head of the last row, by the definition in float64.
  sigma::MultiTokenInput one = in;
  const auto last = [](const Tensor& t) {
    return t.detach().slice(0, B - 1).slice(1, H - 1).to(torch::kDouble);
  };
  one.q = last(q), one.k = last(k), one.v = last(v);
  for (sigma::ScoreMixing* m : {&one.before, &one.after})
    m->kernel = m->kernel.detach().slice(0, H - 1).to(torch::kDouble);
  const Tensor exact = sigma::multi_token_attention_reference(one).out;
  const auto check = [&](const Tensor& out, const Tensors&) {
    return std::vector<double>{relative_error(last(out), exact)};
  };

  const auto maps = [&] {  // the published formulation: whole score maps, convolved by torch
    const auto convolved = [](const Tensor& map, const Tensor& weight) {
      return at::conv2d(torch::constant_pad_nd(map, {5, 5, 5, 0}),
                        weight.to(map.scalar_type()).flip({1, 2}).unsqueeze(1), Tensor(),
                        torch::IntArrayRef{1}, torch::IntArrayRef{0}, torch::IntArrayRef{1}, H);
    };
    const Tensor scores = torch::matmul(q, k.transpose(-1, -2)) / std::sqrt(D);
    const Tensor P = torch::softmax(convolved(scores, in.before.kernel), -1);
    return torch::matmul(convolved(P, in.after.kernel), v);
  };
  const Tensors leaves = {q, k, v, in.before.kernel, in.after.kernel};
  Table out{.name = "multi-token",
            .title = "multi-token attention, 6 x 11 before and after, B 4 H 16 N 4096 D 64, full",
            .goal = "forward 3 ms, with backward 15 ms, 1 GB",
            .flop = 4.0 * B * H * N * N * D};
  out.rows.push_back(
      measure("sigma", [&] { return sigma::multi_token_attention(in).out; }, leaves, grad, check));
  out.rows.push_back(
      measure("in wider heads", [&] { return sigma::multi_token_wide(in); }, leaves, grad, check));
  out.rows.push_back(measure("score maps", maps, leaves, grad, check));
  out.rows.push_back(dense_row(q, k, v, grad, false));
  out.rows.push_back(dense_row(q, k, v, grad, true));
  const Row& ours = out.rows[0];
  out.missed =
      inexact(ours) || ours.forward > 3 || ours.forward + ours.backward > 15 || ours.memory > 1e9;
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Options options = parse(argc, argv);
    if (!torch::cuda::is_available()) {
      fmt::print(stderr, "no NVIDIA GPU here: skipped\n");
      return 0;
    }
    // The dense layer's attention too: cuDNN first.
    using at::SDPBackend;
    at::globalContext().setSDPPriorityOrder({static_cast<int64_t>(SDPBackend::cudnn_attention),
                                             static_cast<int64_t>(SDPBackend::flash_attention),
                                             static_cast<int64_t>(SDPBackend::efficient_attention),
                                             static_cast<int64_t>(SDPBackend::math),
                                             static_cast<int64_t>(SDPBackend::overrideable)});
    bool missed = false;
    const auto show = [&](const std::string& name, const std::function<Table()>& make) {
      if (!options.wants(name)) return;
      const Table table = make();
      missed = missed || table.missed;
      print(table, options.json);
      free_cached_memory();
    };
    for (const SparseCase& c : kSparse) show(c.name, [&] { return sparse_table(c, options); });
    show("layer", layer_table);
    show("multi-token", multi_token_table);
    return options.check && missed ? 1 : 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 2;
  }
}
