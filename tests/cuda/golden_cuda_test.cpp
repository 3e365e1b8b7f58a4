// Golden files of attention in bfloat16 and float16 on an NVIDIA GPU, through the kernels of every
// path. Every test skips without one.
//
// The files' inputs are not rounded to 16 bits. So a result may differ from the file's value by
// what this rounding does to the exact result, taken from the definition in float64 on the CPU
// (which golden_test compares with the files), and by what the kernels round, from the same inputs
// on (attention.md 11).
#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cstdlib>
#include <filesystem>

#include "sigma/attention/block_sparse_gpu.h"
#include "sigma/attention/selection_gpu.h"
#include "sigma/attention/windows.h"
#include "tests/cuda/block_sparse_bounds.h"
#include "tests/cuda/gpu_test.h"
#include "tests/golden_runners/attention_inputs.h"

namespace sigma {
namespace {

using golden::GoldenFile;
using torch::Tensor;
using Result = BlockSparseResult;

class GoldenCuda : public GpuTest {
 protected:
  void TearDown() override { unsetenv("SIGMA_ATTENTION"); }
};

std::vector<GoldenFile> files(const std::vector<std::string>& prefixes) {
  namespace fs = std::filesystem;
  const char* folder = std::getenv("SIGMA_GOLDEN_DIR");
  const fs::path root =
      folder && *folder ? fs::path(folder) : fs::path(SIGMA_SOURCE_DIR) / "tests/golden";
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(root / "attention"))
    for (const std::string& prefix : prefixes)
      if (entry.path().stem().string().starts_with(prefix)) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  std::vector<GoldenFile> out;
  for (const auto& path : paths) out.emplace_back(path);
  return out;
}

Tensor rounded(const Tensor& x, torch::ScalarType dtype) {
  return x.detach().to(dtype).to(torch::kDouble);
}

BlockSparseInput rounded(BlockSparseInput in, torch::ScalarType dtype) {
  for (Tensor* x : {&in.q, &in.k, &in.v}) *x = rounded(*x, dtype);
  return in;
}

std::vector<Tensor> list(const Result& r) { return {r.out, r.lse, r.grad_q, r.grad_k, r.grad_v}; }
const std::vector<std::string> kNames = {"out", "lse", "grad q", "grad k", "grad v"};

// How far `actual` is beyond its bound: at most 1; NaN counts as infinitely far.
double excess(const Tensor& actual, const Tensor& expected, const Tensor& bound) {
  const Tensor a = actual.cpu().to(torch::kDouble);
  const Tensor gap = (a - expected).abs().masked_fill(a == expected, 0) / bound;
  return gap.nan_to_num(1e9, 1e9).max().item<double>();
}

// The results of a call in 16 bits by a path, and their distance from exact ones allowed for.
struct Compared {
  Result actual, exact, bound;
};
Compared run_rounded(const BlockSparseInput& in, const Tensor& grad_out, torch::ScalarType dtype,
                     const std::string& path) {
  Compared out;
  const BlockSparseInput same = rounded(in, dtype);
  const Tensor g = rounded(grad_out, dtype);
  out.exact = run(block_sparse_attention_reference, same, torch::kDouble, g);
  out.bound = block_sparse_bounds(same, out.exact, g, dtype);
  setenv("SIGMA_ATTENTION", path.c_str(), 1);
  const BlockSparseInput device = on_gpu(same, dtype);
  EXPECT_EQ(block_sparse_path(device),
            path == "hopper" ? AttentionPath::kHopper : AttentionPath::kPortable);
  out.actual = run(block_sparse_attention, device, dtype, g.to(torch::kCUDA));
  return out;
}

// Those that this GPU has.
std::vector<std::string> paths() {
  unsetenv("SIGMA_ATTENTION");
  const AttentionPath fastest = block_sparse_path(on_gpu(input_of({}), torch::kHalf));
  if (fastest == AttentionPath::kHopper) return {"portable", "hopper"};
  return {"portable"};
}

TEST_F(GoldenCuda, BlockSparseAttentionInHalf) {
  int calls = 0;
  for (const GoldenFile& file : files({"nsa_", "vsa_lists_"})) {
    if (!file.has("index") || !file.has("q") || file.has("gate_cmp")) continue;
    for (const golden::SparseCall& call : golden::sparse_calls(file)) {
      BlockSparseInput in = call.in;
      const int64_t copies = in.index.size(1) / in.k.size(1);
      in.k = in.k.repeat_interleave(copies, 1);
      in.v = in.v.repeat_interleave(copies, 1);
      const auto added = [&](const Tensor& x) { return x.unflatten(1, {-1, copies}).sum(2); };
      const Tensor grad_out = file.get("grad_out" + call.suffix);
      const std::vector<std::string> stored = {"out" + call.suffix, "lse" + call.suffix,
                                               call.q_grad, call.k_grad, call.v_grad};
      ++calls;
      for (const auto dtype : {torch::kBFloat16, torch::kHalf}) {
        for (const std::string& path : paths()) {
          SCOPED_TRACE(file.path().stem().string() + call.suffix + " " + toString(dtype) + " " +
                       path);
          const auto worst = [&](const BlockSparseInput& from, size_t i) {
            const Compared r = run_rounded(from, grad_out, dtype, path);
            const auto part = [&](const Result& x) {
              return i < 3 ? list(x)[i] : added(list(x)[i]);
            };
            const Tensor expected = file.get(stored[i]);
            // The exact results of `in`, whatever `from` is.
            const Tensor exact = part(run(block_sparse_attention_reference, rounded(in, dtype),
                                          torch::kDouble, rounded(grad_out, dtype)));
            const Tensor moved = (exact - expected).abs().masked_fill(exact == expected, 0);
            return excess(part(r.actual), expected, part(r.bound) + moved);
          };
          for (size_t i = 0; i < stored.size(); ++i)
            if (file.has(stored[i])) EXPECT_LE(worst(in, i), 1) << kNames[i];
          // Lists without their first block are found out.
          BlockSparseInput other = in;
          other.index = in.index.slice(3, 1);
          EXPECT_GT(worst(other, 0), 1);
        }
      }
    }
  }
  EXPECT_GE(calls, 12);
}

// A layer's branches with given gates, added up in float64.
TEST_F(GoldenCuda, BranchesInHalf) {
  int layers = 0;
  for (const GoldenFile& file : files({"nsa_"})) {
    if (!file.has("gate_cmp")) continue;
    ++layers;
    for (const auto dtype : {torch::kBFloat16, torch::kHalf}) {
      for (const std::string& path : paths()) {
        SCOPED_TRACE(file.path().stem().string() + " " + toString(dtype) + " " + path);
        const Tensor grad_out = file.get("grad_out");
        // Compressed keys are means: their gradient goes back to the tokens in equal parts.
        const Tensor k = file.get("k").requires_grad_(), v = file.get("v").requires_grad_();
        const auto back = [&](const Tensor& mean, const Tensor& leaf, const Tensor& grad) {
          return torch::autograd::grad({mean}, {leaf}, {grad}, /*retain_graph=*/true)[0];
        };
        std::map<std::string, std::array<Tensor, 3>> sums;  // actual, exact, bound
        const auto add = [&](const std::string& name, const std::array<Tensor, 3>& x) {
          auto& sum = sums[name];
          for (size_t i = 0; i < 3; ++i) {
            const Tensor term = x[i].cpu().to(torch::kDouble);
            sum[i] = sum[i].defined() ? sum[i] + term : term;
          }
        };
        for (const golden::Branch& branch : golden::branches(file, file.get("q"), k, v)) {
          const Tensor gate = file.get(branch.gate).unsqueeze(-1);
          const Compared r = run_rounded(branch.in, gate * grad_out, dtype, path);
          const auto of = [&](auto member) {
            return std::array<Tensor, 3>{member(r.actual).cpu().to(torch::kDouble), member(r.exact),
                                         member(r.bound)};
          };
          auto out = of([](const Result& x) { return x.out; });
          std::array<Tensor, 3> of_gate = out;
          for (size_t i = 0; i < 3; ++i) {
            const Tensor g = i == 2 ? grad_out.abs() : grad_out;
            of_gate[i] = (out[i] * g).sum(-1);
            out[i] = out[i] * (i == 2 ? gate.abs() : gate);
          }
          add("out", out);
          add("grad_" + branch.gate, of_gate);
          add("grad_q", of([](const Result& x) { return x.grad_q; }));
          auto grad_k = of([](const Result& x) { return x.grad_k; });
          auto grad_v = of([](const Result& x) { return x.grad_v; });
          if (branch.gate == "gate_cmp") {
            for (Tensor& x : grad_k) x = back(branch.in.k, k, x);
            for (Tensor& x : grad_v) x = back(branch.in.v, v, x);
          }
          add("grad_k", grad_k);
          add("grad_v", grad_v);
        }
        for (const auto& [name, sum] : sums) {
          const Tensor expected = file.get(name);
          EXPECT_LE(excess(sum[0], expected, sum[2] + (sum[1] - expected).abs()), 1) << name;
        }
      }
    }
  }
  EXPECT_EQ(layers, 2);
}

// Multi-token attention in 16 bits: wide keys and values, P, dS, the outputs of each step and the
// results are rounded once each, errors of random sign of at most u: in norm at most sqrt(6) u of
// terms up to twice the result, as in MultiTokenAttentionInHalf. Zero columns take heads to 64
// channels, which the kernels of Hopper have.
TEST_F(GoldenCuda, MultiTokenAttentionInHalf) {
  int count = 0;
  for (const GoldenFile& file : files({"mta_"})) {
    if (!file.has("q")) continue;
    ++count;
    std::vector<std::string> names = {"q", "k", "v"};
    for (const char* name : {"theta", "phi", "pre_mix", "post_mix"})
      if (file.has(name)) names.emplace_back(name);
    for (const auto dtype : {torch::kBFloat16, torch::kHalf}) {
      for (const std::string& path : paths()) {
        SCOPED_TRACE(file.path().stem().string() + " " + toString(dtype) + " " + path);
        setenv("SIGMA_ATTENTION", path.c_str(), 1);
        const auto results = [&](bool fast) {
          std::map<std::string, Tensor> leaves;
          const auto get = [&](const std::string& name) -> Tensor {
            if (!file.has(name)) return {};
            Tensor x = file.get(name);
            if (name.size() == 1) x = fast ? x.to(dtype) : rounded(x, dtype);
            else if (fast) x = x.to(torch::kFloat);
            if (fast) x = x.to(torch::kCUDA);
            return leaves.emplace(name, x.detach().requires_grad_()).first->second;
          };
          const auto wide = [](const Tensor& x) { return pad_columns(x, 64); };
          const Tensor q = get("q"), k = get("k"), v = get("v");
          const int64_t D = v.size(3);
          MultiTokenInput in = golden::golden_multi_token(file, get, wide(q), wide(k), wide(v));
          in.scale = score_scale(0, q);
          if (fast && in.key_valid.defined()) in.key_valid = in.key_valid.to(torch::kCUDA);
          const Tensor out =
              (fast ? multi_token_attention(in) : multi_token_attention_reference(in))
                  .out.slice(3, 0, D);
          const Tensor grad = rounded(file.get("grad_core_out"), dtype).to(out.options());
          out.backward(grad);
          std::vector<Tensor> all = {out.detach()};
          for (const std::string& name : names) all.push_back(leaves.at(name).grad());
          for (Tensor& x : all) x = x.cpu().to(torch::kDouble);
          return all;
        };
        const auto exact = results(false), actual = results(true);
        const double u = dtype == torch::kHalf ? 0x1p-11 : 0x1p-8;
        for (size_t i = 0; i < exact.size(); ++i) {
          const std::string name = i == 0 ? "core_out" : "grad_" + names[i - 1];
          if (!file.has(name)) continue;
          const Tensor expected = file.get(name);
          const double bound = 5 * u * (expected.norm().item<double>() + 1e-3) +
                               (exact[i] - expected).norm().item<double>();
          EXPECT_LE((actual[i] - expected).norm().item<double>(), bound) << name;
        }
      }
    }
  }
  EXPECT_GE(count, 17);
}

// The kernels choose the files' lists: top_n from q and compressed keys, where float32 leaves the
// files' margins (1e-3 and more of scores of order 1); in 16 bits those of the definition on the
// same rounded inputs.
TEST_F(GoldenCuda, ListsFromScores) {
  int count = 0;
  for (const GoldenFile& file : files({"nsa_coarse_selected_"})) {
    ++count;
    const Json options = golden::sparse_options(file);
    const int64_t size = golden::whole(options, "compress_size", 0);
    const int64_t stride = golden::whole(options, "compress_stride", 0);
    const int64_t block = golden::whole(options, "block", 0);
    const Tensor q = file.get("q"), ck = file.get("ck");
    const int64_t N = q.size(2), M = q.size(1) / ck.size(1);
    const SelectionConfig config = golden::golden_selection(options);
    const BlockGeometry geometry =
        block_geometry({.grid = {1, 1, N}, .pattern = Pattern::kCausal}, {1, 1, block});
    const Tensor rank = std::get<0>(sequence_windows(N, size, stride, true).max(1));
    ASSERT_EQ(rank.size(0), ck.size(2));
    const SelectionTables tables =
        selection_tables(config, geometry, rank, /*causal=*/true, torch::kCUDA);
    const double scale = score_scale(0, q);
    for (const auto dtype : {torch::kFloat, torch::kBFloat16, torch::kHalf}) {
      const Tensor actual = select_blocks_gpu(config, geometry, tables,
                                              {.q = q.to(torch::kCUDA, dtype),
                                               .ck = ck.to(torch::kCUDA, dtype),
                                               .scale = scale,
                                               .size = size,
                                               .stride = stride});
      ASSERT_TRUE(actual.defined());
      Tensor s = torch::matmul(rounded(q, dtype),
                               rounded(ck, dtype).repeat_interleave(M, 1).transpose(-1, -2)) *
                 scale;
      s = s.masked_fill(rank.unsqueeze(0) > torch::arange(N).unsqueeze(1),
                        -std::numeric_limits<double>::infinity());
      const Tensor p = torch::softmax(s, -1).nan_to_num(0).unflatten(1, {-1, M}).sum(2);
      const Tensor expected = dtype == torch::kFloat
                                  ? golden::lists(file, "index")
                                  : select_blocks(config, geometry, {.causal = true},
                                                  block_scores(p, N, size, stride, block));
      EXPECT_TRUE(torch::equal(actual.cpu(), expected))
          << file.path().stem() << " " << torch::toString(dtype);
    }
  }
  EXPECT_EQ(count, 3);
}

// The diverse choices see the files' features in float32, with equal scores.
TEST_F(GoldenCuda, DiverseLists) {
  int lists = 0;
  for (const GoldenFile& file : files({"select_"})) {
    const bool dart = file.has("features_image_only");
    const Tensor features = file.get(dart ? "features_image_only" : "features");
    const int64_t W = features.size(0), C = features.size(1);
    const BlockGeometry geometry = block_geometry({.grid = {1, 1, W}}, {1, 1, 1});
    for (const std::string& chosen : file.names()) {
      if (dart ? chosen != "selected_image_only" : !chosen.starts_with("selected_")) continue;
      ++lists;
      SelectionConfig config;
      config.num_selected = file.get(chosen).size(0);
      config.init_blocks = 0;
      config.local_radius = -1;
      config.pool_factor = 0;
      config.strategy = dart ? "dart" : "max_min";
      config.pivot = "key_norm";
      if (dart) config.num_pivots = file.get("pivots_image_only").size(0);
      config.alpha = 0;
      const SelectionTables tables =
          selection_tables(config, geometry, torch::arange(W), /*causal=*/false, torch::kCUDA);
      for (const auto dtype : {torch::kFloat, torch::kBFloat16, torch::kHalf}) {
        const auto zeros =
            torch::zeros({1, 1, W, C}, torch::TensorOptions(torch::kCUDA).dtype(dtype));
        const Tensor actual =
            select_blocks_gpu(config, geometry, tables,
                              {.q = zeros,
                               .ck = zeros,
                               .raw = features.to(torch::kCUDA, torch::kFloat).view({1, 1, W, C}),
                               .size = 1,
                               .stride = 1});
        ASSERT_TRUE(actual.defined());
        EXPECT_TRUE(torch::equal(actual.cpu().select(2, 0).flatten().to(torch::kInt64),
                                 std::get<0>(file.get(chosen).sort())))
            << file.path().stem() << " " << chosen << " " << torch::toString(dtype);
      }
    }
  }
  EXPECT_EQ(lists, 2 + 3 + 2 + 3);
}

}  // namespace
}  // namespace sigma
