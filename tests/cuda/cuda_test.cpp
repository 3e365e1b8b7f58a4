// The same numbers on an NVIDIA GPU as on the CPU. Every test skips without one.
#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cmath>
#include <map>

#include "sigma/attention/attention.h"
#include "sigma/attention/dense.h"
#include "sigma/attention/multi_token_op.h"
#include "sigma/base/random.h"
#include "sigma/generator/network.h"
#include "sigma/generator/objectives/imm.h"
#include "sigma/nn/gated_norm.h"
#include "sigma/train/trainer.h"
#include "tests/cli/program.h"
#include "tests/cuda/gpu_test.h"
#include "tests/testing/numbers.h"

namespace sigma {
namespace {

using torch::Tensor;

// float32 against float64 over sums of up to a few hundred terms, a few layers deep: 2^-24 grows
// by about the square root of both.
constexpr double kFloatBound = 1e-5;

class Cuda : public GpuTest {};

// max |a - b| over max |b|, compared on the CPU.
double relative(const Tensor& a, const Tensor& b) {
  return error(a.cpu(), b.cpu()) / b.abs().max().item<double>();
}

TEST_F(Cuda, RandomNumbersHaveTheBitsOfTheCpu) {
  const Rng rng{.seed = 7, .step = 3};
  const Tensor indices = torch::arange(4096) * 5 + 1;
  for (const auto dtype : {torch::kFloat, torch::kDouble, torch::kBFloat16}) {
    const Tensor host = torch::empty({4096, 4096}, dtype);  // 2^24 numbers
    const Tensor device = torch::empty_like(host, host.options().device(torch::kCUDA));
    fill_normal(host, rng, Purpose::kNoise, 2, indices);
    fill_normal(device, rng, Purpose::kNoise, 2, indices);
    const Tensor back = device.cpu();
    if (dtype == torch::kDouble) {
      // Unrounded, the last bits are those of each platform's logarithm and cosine.
      EXPECT_LE(error(back, host), 1e-14);
    } else {
      EXPECT_EQ((back != host).sum().item<int64_t>(), 0) << torch::toString(dtype);
    }
    if (dtype == torch::kBFloat16) continue;
    fill_uniform(host, rng, Purpose::kTimes, 0, indices);
    fill_uniform(device, rng, Purpose::kTimes, 0, indices);
    EXPECT_TRUE(torch::equal(device.cpu(), host)) << torch::toString(dtype);
  }
}

TEST_F(Cuda, GatedNormAndItsGradients) {
  const std::vector<Tensor> leaves = {normal({3, 7, 40}, 1), normal({3, 7, 40}, 2),
                                      normal({3, 120}, 3)};
  const auto run = [&](torch::Device device, torch::ScalarType dtype) {
    std::vector<Tensor> in;
    for (const Tensor& leaf : leaves)
      in.push_back(leaf.to(device, dtype).detach().requires_grad_());
    const auto m = in[2].chunk(3, 1);
    const GatedNorm out = gated_norm(in[0], in[1], m[0], m[1], m[2], 1e-6);
    (out.y.square().sum() + out.h.sum()).backward();
    return std::vector{out.y.detach(), out.h.detach(), in[0].grad(), in[1].grad(), in[2].grad()};
  };
  const auto expected = run(torch::kCPU, torch::kDouble);
  const auto actual = run(torch::kCUDA, torch::kFloat);
  for (size_t i = 0; i < expected.size(); ++i)
    EXPECT_LE(relative(actual[i], expected[i]), kFloatBound) << i;
}

TEST_F(Cuda, DenseAttentionInEveryPattern) {
  DenseAttention attention(64, 4, /*qk_norm=*/true);
  initialize(attention, 3);
  for (const Pattern pattern : {Pattern::kFull, Pattern::kCausal, Pattern::kCausalAfter}) {
    TokenLayout layout{.before = 1, .grid = {1, 5, 7}, .after = 4, .pattern = pattern};
    const Tensor x = normal({2, layout.tokens(), 64}, 5);
    const auto run = [&](torch::Device device, torch::ScalarType dtype) {
      attention.to(device, dtype);
      return attention.forward(x.to(device, dtype), layout, nullptr, {}).detach();
    };
    EXPECT_LE(relative(run(torch::kCUDA, torch::kFloat), run(torch::kCPU, torch::kDouble)),
              kFloatBound);
    // 8 bits of mantissa, products summed in float32.
    EXPECT_LE(relative(run(torch::kCUDA, torch::kBFloat16), run(torch::kCPU, torch::kDouble)),
              0.03);
    attention.to(torch::kCPU, torch::kFloat);
    initialize(attention, 3);  // the weights were rounded
  }
}

// A network with everything in it: rotary positions, experts in every second block, two times.
NetworkConfig network_config() {
  NetworkConfig config{.num_classes = 5, .patch_size = 4};
  config.trunk = {.hidden_size = 64, .depth = 2, .num_heads = 4, .mlp_ratio = 2};
  config.trunk.position = "none";
  config.trunk.rope.kind = "axial";
  config.trunk.mlp.kind = "moe";
  config.trunk.mlp.layers = "odd";
  return config;
}

// More heads of all images than a grid of thread blocks has places on an axis.
TEST_F(Cuda, DenseAttentionOfManyImages) {
  for (const auto& [B, H] : std::vector<std::pair<int64_t, int64_t>>{{140000, 1}, {40000, 4}}) {
    for (const auto dtype : {torch::kFloat, torch::kBFloat16}) {
      std::vector<Tensor> leaves;
      for (uint32_t i = 0; i < 3; ++i)
        leaves.push_back(
            normal({B, H, 3, 16}, i, torch::kFloat).to(torch::kCUDA, dtype).requires_grad_());
      const auto run = [&](auto op) {
        const Tensor out = op(leaves[0], leaves[1], leaves[2], /*causal=*/false);
        auto results = torch::autograd::grad({out.square().sum()}, leaves);
        results.push_back(out.detach());
        return results;
      };
      const auto actual = run(dense_attention), expected = run(attention_reference);
      const double bound = dtype == torch::kFloat ? kFloatBound : 0x1p-6;  // bfloat16: 2 eps
      for (size_t i = 0; i < actual.size(); ++i)
        EXPECT_LE(relative(actual[i], expected[i]), bound) << B << " " << i;
    }
  }
}

TEST_F(Cuda, ImmDrawsLossAndGradients) {
  const Imm imm({}, Preconditioner("simple_edm", Path(PathConfig{.t_min = 0.006})));
  const Context context{.training = true,
                        .record = true,
                        .rng = {.seed = 1, .step = 9},
                        .samples = torch::arange(32)};
  const GeneratorBatch host{.data = normal({32, 1, 16, 16}, 4, torch::kFloat) * 0.5,
                            .labels = torch::arange(32) % 5};
  const Draws draws = imm.draw(host, 5, context);
  struct Result {
    Output out;
    std::map<std::string, Tensor> grads;
  };
  const auto run = [&](torch::Device device) {
    DiffusionTransformer network(network_config(), {1, 16, 16});
    initialize(network, 2);
    {
      // Gates and the last layer start at zero: move them, so that everything has a gradient.
      const torch::NoGradGuard no_grad;
      uint32_t site = 100;
      for (Tensor& p : network.parameters()) p += normal(p.sizes(), site++, torch::kFloat) * 0.05;
    }
    network.to(device);
    const GeneratorBatch batch{.data = host.data.to(device), .labels = host.labels.to(device)};
    const Draws own = imm.draw(batch, 5, context);
    EXPECT_TRUE(torch::equal(own.eps.cpu(), draws.eps));
    EXPECT_TRUE(torch::equal(own.r.cpu(), draws.r));
    EXPECT_TRUE(torch::equal(own.student_labels.cpu(), draws.student_labels));
    Result result{.out = imm.loss(network, network, batch, own, context), .grads = {}};
    Tensor loss;
    for (const auto& [name, value] : result.out.losses)
      loss = loss.defined() ? loss + value : value;
    loss.backward();
    for (const auto& item : network.named_parameters())
      result.grads[item.key()] = item.value().grad().cpu();
    return result;
  };
  const Result cpu = run(torch::kCPU);
  const Result gpu = run(torch::kCUDA);
  for (const auto& [name, value] : cpu.out.losses)
    EXPECT_LE(relative(gpu.out.losses.at(name), value), 1e-4) << name;
  for (const auto& [name, grad] : cpu.grads)
    EXPECT_LE(relative(gpu.grads.at(name), grad), 1e-3) << name;  // both sides are float32
}

TEST_F(Cuda, TrainingRepeatsBitForBitAndFollowsTheCpu) {
  const Program p("cuda");
  p.write_data();
  p.write_recipe();
  const auto config = [&](const std::string& device) {
    return load_run_config(
        p.path("tiny.toml"),
        {"data.images=" + p.path("images.idx"), "data.labels=" + p.path("labels.idx"),
         "train.device=" + device, "train.compute_dtype=float32", "checkpoint.every=1M",
         "generator.trunk.mlp={kind=\"moe\", num_experts=3, num_chosen=2}"});
  };
  const auto weights = [&](const std::string& run) {
    return sha256_file(p.checkpoints(run).back() / "model.safetensors");
  };
  const TrainResult straight = train(config("cuda"), {.run = p.path("one"), .quiet = true});
  for (const int64_t stop : {7, 60, 0})
    train(config("cuda"), {.run = p.path("two"), .quiet = true, .stop_after_step = stop});
  EXPECT_EQ(weights("one"), weights("two"));
  const TrainResult cpu = train(config("cpu"), {.run = p.path("cpu"), .quiet = true});
  EXPECT_NEAR(straight.loss, cpu.loss, 0.05 * std::abs(cpu.loss));
}

// float32 on both, selection included; bfloat16 near it.
TEST_F(Cuda, SparseAndMultiTokenAttention) {
  const std::vector<TokenLayout> layouts = {{.grid = {1, 1, 150}},
                                            {.grid = {1, 1, 150}, .pattern = Pattern::kCausal},
                                            {.grid = {1, 9, 11}},
                                            {.grid = {3, 6, 5}}};
  for (const TokenLayout& layout : layouts) {
    const bool causal = layout.pattern == Pattern::kCausal;
    AttentionConfig sparse{.kind = "sparse"};
    sparse.sparse.block = layout.grid.axes() == 1   ? std::vector<int64_t>{16}
                          : layout.grid.axes() == 2 ? std::vector<int64_t>{4, 4}
                                                    : std::vector<int64_t>{2, 2, 2};
    sparse.sparse.selection.num_selected = 5;
    if (causal) {  // windows that overlap
      sparse.sparse.compress_size = 8;
      sparse.sparse.compress_stride = 4;
    }
    AttentionConfig multi{.kind = "multi_token"};
    multi.multi_token.query_side = causal ? "past" : "centre";
    multi.multi_token.pre_heads = 4;
    for (const AttentionConfig& config : {sparse, multi}) {
      const auto attention = make_attention(config, 64, 4, layout.grid, 0);
      initialize(*attention, 1);
      {
        const torch::NoGradGuard no_grad;
        for (const Tensor& p : attention->parameters())
          p.add_(normal(p.sizes(), 9, torch::kFloat) * 0.05);
      }
      const Tensor x = normal({2, layout.tokens(), 64}, 3, torch::kFloat);
      const auto run = [&](torch::Device device, torch::ScalarType dtype) {
        attention->to(device);
        attention->zero_grad();
        const Tensor input = x.to(device, dtype).detach().requires_grad_();
        const Tensor out = attention->forward(input, layout, nullptr, {.dtype = dtype});
        out.to(torch::kFloat).square().sum().backward();
        std::vector<Tensor> results = {out.detach().to(torch::kFloat),
                                       input.grad().to(torch::kFloat)};
        for (const Tensor& p : attention->parameters())
          results.push_back(p.grad().defined() ? p.grad().cpu().clone() : torch::zeros({1}));
        return results;
      };
      const auto host = run(torch::kCPU, torch::kFloat);
      const auto device = run(torch::kCUDA, torch::kFloat);
      ASSERT_EQ(host.size(), device.size());
      // A gradient whose terms cancel keeps their rounding: 5e-6 of terms of order 1.
      for (size_t i = 0; i < host.size(); ++i)
        EXPECT_LE(error(device[i].cpu(), host[i].cpu()),
                  1e-4 * (5e-2 + host[i].abs().max().item<double>()))
            << config.kind << " " << layout.tokens() << " " << i;
      // Other lists may be chosen where scores nearly tie: only the size of the result is checked.
      const auto half = run(torch::kCUDA, torch::kBFloat16);
      EXPECT_LE((half[0].cpu() - host[0]).norm().item<double>(),
                0.2 * host[0].norm().item<double>())
          << config.kind << " " << layout.tokens();
    }
  }
}

// Multi-token attention in 16 bits against the score maps in float64 of the same inputs. Wide keys
// and values, P, dS, y and the results are rounded to the dtype once each, errors of random sign of
// at most u = eps / 2: in norm at most sqrt(6) u of terms up to twice the result.
TEST_F(Cuda, MultiTokenAttentionInHalf) {
  struct Case {
    int64_t N;
    std::vector<GridStep> queries, keys;
    int64_t mix;
  };
  const std::vector<GridStep> near = centred_steps({1, 1, 11});
  const std::vector<Case> cases = {{63, past_steps({1, 1, 6}), near, 1},
                                   {65, past_steps({1, 1, 6}), near, 1},
                                   {300, centred_steps({1, 1, 5}), near, 2},
                                   {300, centred_steps({1, 1, 3}), centred_steps({1, 1, 3}), 1}};
  for (const Case& c : cases) {
    for (const auto dtype : {torch::kBFloat16, torch::kHalf}) {
      const int64_t B = 2, H = 4;
      const std::vector<int64_t> taps = {H, static_cast<int64_t>(c.queries.size()),
                                         static_cast<int64_t>(c.keys.size())};
      std::vector<Tensor> inputs;
      for (uint32_t i = 0; i < 3; ++i)
        inputs.push_back(normal({B, H, c.N, 64}, 20 + i, torch::kFloat).to(dtype));
      for (uint64_t i = 0; i < 2; ++i) inputs.push_back(normal(taps, 30 + i, torch::kFloat) * 0.2);
      if (c.mix > 1) inputs.push_back(normal({H / c.mix, c.mix, c.mix}, 40, torch::kFloat));
      const Tensor grad = normal({B, H, c.N, 64}, 50, torch::kFloat).to(dtype);
      const auto run = [&](torch::Device device, bool fast) {
        std::vector<Tensor> leaves;
        for (const Tensor& x : inputs) {
          const Tensor moved = fast ? x.to(device) : x.to(device, torch::kDouble);
          leaves.push_back(moved.detach().requires_grad_());
        }
        MultiTokenInput in{.q = leaves[0], .k = leaves[1], .v = leaves[2]};
        in.layout.grid = {1, 1, c.N};
        in.before = {.kernel = leaves[3], .queries = c.queries, .keys = c.keys, .mix = {}};
        in.after = {.kernel = leaves[4], .queries = c.queries, .keys = c.keys, .mix = {}};
        if (c.mix > 1) in.after.mix = leaves[5];
        const Tensor out =
            (fast ? multi_token_attention(in) : multi_token_attention_reference(in)).out;
        std::vector<Tensor> results =
            torch::autograd::grad({out}, leaves, {grad.to(device, out.scalar_type())});
        results.insert(results.begin(), out.detach());
        for (Tensor& x : results) x = x.to(torch::kCPU);
        return results;
      };
      const auto truth = run(torch::kCPU, false);
      const auto device = run(torch::kCUDA, true);
      const auto again = run(torch::kCUDA, true);
      const double unit = dtype == torch::kHalf ? std::ldexp(1.0, -11) : std::ldexp(1.0, -8);
      for (size_t i = 0; i < truth.size(); ++i) {
        EXPECT_LE((device[i].to(torch::kDouble) - truth[i]).norm().item<double>(),
                  5 * unit * (truth[i].norm().item<double>() + 1e-3))
            << c.N << " " << i;
        EXPECT_TRUE(torch::equal(device[i], again[i])) << c.N << " " << i;
      }
    }
  }
}

}  // namespace
}  // namespace sigma
