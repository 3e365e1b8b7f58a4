#include "sigma/attention/block_sparse.h"

#include <torch/autograd.h>
#include <torch/types.h>

#include "sigma/attention/block_sparse_gpu.h"
#include "sigma/attention/kernels/block_sparse.h"
#include "sigma/base/error.h"
#include "sigma/base/tasks.h"

namespace sigma {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kStrip = 128;  // rows of scores that the reference holds

void check(const BlockSparseInput& in) {
  const auto& [q, k, v, index, kv_start, q_start, rank_q, rank_k, window, key_valid, scale,
               tables] = in;
  SIGMA_CHECK(kUsage, q.dim() == 4 && k.dim() == 4 && v.dim() == 4,
              "block_sparse_attention: expected q, k, v of 4 axes, got {}, {}, {}", q.dim(),
              k.dim(), v.dim());
  const int64_t B = q.size(0), H = q.size(1), G = k.size(1), Nk = k.size(2);
  SIGMA_CHECK(kUsage,
              k.size(0) == B && v.size(0) == B && v.size(1) == G && v.size(2) == Nk &&
                  k.size(3) == q.size(3),
              "block_sparse_attention: k [{}] and v [{}] do not fit q [{}]",
              fmt::join(k.sizes(), ","), fmt::join(v.sizes(), ","), fmt::join(q.sizes(), ","));
  SIGMA_CHECK(kUsage, G >= 1 && H % G == 0,
              "block_sparse_attention: expected heads divisible by key/value heads, got {} and {}",
              H, G);
  SIGMA_CHECK(kUsage, scale >= 0, "block_sparse_attention: expected a scale of at least 0, got {}",
              scale);
  const int64_t R = q_start.defined() ? q_start.size(0) - 1 : q.size(2);
  SIGMA_CHECK(kUsage,
              index.dim() == 4 && index.size(0) == B && index.size(1) == G && index.size(2) == R &&
                  index.scalar_type() == torch::kInt,
              "block_sparse_attention: expected int32 lists [{},{},{},n], got [{}]", B, G, R,
              fmt::join(index.sizes(), ","));
  const auto last = [](const Tensor& start) { return start[-1].item<int64_t>(); };
  SIGMA_CHECK(kUsage, last(kv_start) == Nk, "block_sparse_attention: blocks of {} keys, got {}",
              last(kv_start), Nk);
  SIGMA_CHECK(kUsage, !q_start.defined() || last(q_start) == q.size(2),
              "block_sparse_attention: tiles of {} queries, got {}", last(q_start), q.size(2));
  SIGMA_CHECK(kUsage, rank_q.defined() == rank_k.defined() && (window == 0 || rank_q.defined()),
              "block_sparse_attention: expected ranks of queries and keys together");
  SIGMA_CHECK(kUsage, !rank_q.defined() || (rank_q.numel() == q.size(2) && rank_k.numel() == Nk),
              "block_sparse_attention: expected {} and {} ranks, got {} and {}", q.size(2), Nk,
              rank_q.numel(), rank_k.numel());
  SIGMA_CHECK(kUsage,
              !key_valid.defined() ||
                  (key_valid.dim() == 2 && key_valid.size(0) == B && key_valid.size(1) == Nk),
              "block_sparse_attention: expected key_valid [{},{}], got [{}]", B, Nk,
              fmt::join(key_valid.sizes(), ","));
}

// Whether each of queries [first, last) may see each key: bool [B,G,rows,Nk].
Tensor visible(const BlockSparseInput& in, int64_t first, int64_t last) {
  const torch::Device device = in.q.device();
  const int64_t W = in.kv_start.size(0) - 1;
  Tensor lists = in.index;
  if (in.q_start.defined())
    lists = lists.index_select(
        2, torch::repeat_interleave(in.q_start.diff()).slice(0, first, last).to(device));
  else lists = lists.slice(2, first, last);
  const Tensor known = (lists >= 0) & (lists < W);
  // A column of its own takes what names no block.
  Tensor blocks = torch::zeros({lists.size(0), lists.size(1), lists.size(2), W + 1},
                               torch::TensorOptions(torch::kBool).device(device));
  blocks.scatter_(3, lists.masked_fill(known.logical_not(), W).to(torch::kInt64), true);
  const Tensor block_of = torch::repeat_interleave(in.kv_start.diff()).to(device);
  Tensor out = blocks.index_select(3, block_of);
  if (in.rank_q.defined()) {
    const Tensor gap = in.rank_q.slice(0, first, last).unsqueeze(1) - in.rank_k.unsqueeze(0);
    Tensor allowed = gap >= 0;
    if (in.window > 0) allowed = allowed & (gap < in.window);
    out = out & allowed.to(device);
  }
  if (in.key_valid.defined()) out = out & in.key_valid.unsqueeze(1).unsqueeze(1);
  return out;
}

class Fast : public torch::autograd::Function<Fast> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& k,
                               const Tensor& v, const BlockSparseInput& rest) {
    BlockSparseInput in = rest;
    in.q = q.contiguous();
    in.k = k.contiguous();
    in.v = v.contiguous();
    in.index = in.index.contiguous();
    in.kv_start = in.kv_start.contiguous();
    if (in.key_valid.defined()) in.key_valid = in.key_valid.contiguous();
    const Tensor out = torch::empty({q.size(0), q.size(1), q.size(2), v.size(3)}, q.options());
    const Tensor lse = torch::empty({q.size(0), q.size(1), q.size(2)}, q.options());
    const kernels::BlockSparse a = arguments(in, out, lse);
    kernels::BlockSparseWork work = packed(a, /*backward=*/false);
    run_tasks(a.B * a.G * static_cast<int64_t>(work.chunks.size()),
              [&](int64_t task) { kernels::block_sparse_forward(a, work, task); });
    ctx->save_for_backward({in.q, in.k, in.v, out, lse, in.index, in.kv_start, in.q_start,
                            in.rank_q, in.rank_k, in.key_valid});
    ctx->saved_data["window"] = in.window;
    ctx->saved_data["scale"] = in.scale;
    ctx->mark_non_differentiable({lse});
    return {out, lse};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const BlockSparseInput in{.q = saved[0],
                              .k = saved[1],
                              .v = saved[2],
                              .index = saved[5],
                              .kv_start = saved[6],
                              .q_start = saved[7],
                              .rank_q = saved[8],
                              .rank_k = saved[9],
                              .window = ctx->saved_data["window"].toInt(),
                              .key_valid = saved[10],
                              .scale = ctx->saved_data["scale"].toDouble()};
    const kernels::BlockSparse a = arguments(in, saved[3], saved[4]);
    kernels::BlockSparseWork work = packed(a, /*backward=*/true);
    const Tensor grad_out = grads[0].contiguous();
    const Tensor delta = torch::empty_like(saved[4]);
    const Tensor grad_q = torch::empty_like(in.q);
    const Tensor grad_k = torch::empty_like(in.k);
    const Tensor grad_v = torch::empty_like(in.v);
    const kernels::BlockSparseGrad g{.grad_out = grad_out.data_ptr<float>(),
                                     .delta = delta.data_ptr<float>(),
                                     .grad_q = grad_q.data_ptr<float>(),
                                     .grad_k = grad_k.data_ptr<float>(),
                                     .grad_v = grad_v.data_ptr<float>()};
    run_tasks(a.B * a.G * static_cast<int64_t>(work.chunks.size()),
              [&](int64_t task) { kernels::block_sparse_grad_q(a, g, work, task); });
    run_tasks(a.B * a.G * a.W,
              [&](int64_t task) { kernels::block_sparse_grad_kv(a, g, work, task); });
    return {grad_q, grad_k, grad_v, Tensor()};
  }

 private:
  static kernels::BlockSparse arguments(const BlockSparseInput& in, const Tensor& out,
                                        const Tensor& lse) {
    const auto ranks = [](const Tensor& t) {
      return t.defined() ? t.data_ptr<int64_t>() : nullptr;
    };
    return {.B = in.q.size(0),
            .H = in.q.size(1),
            .G = in.k.size(1),
            .Nq = in.q.size(2),
            .Nk = in.k.size(2),
            .D = in.q.size(3),
            .Dv = in.v.size(3),
            .W = in.kv_start.size(0) - 1,
            .R = in.index.size(2),
            .n = in.index.size(3),
            .q = in.q.data_ptr<float>(),
            .k = in.k.data_ptr<float>(),
            .v = in.v.data_ptr<float>(),
            .index = in.index.data_ptr<int32_t>(),
            .q_start = ranks(in.q_start),
            .kv_start = ranks(in.kv_start),
            .rank_q = ranks(in.rank_q),
            .rank_k = ranks(in.rank_k),
            .window = in.window,
            .key_valid = in.key_valid.defined() ? in.key_valid.data_ptr<bool>() : nullptr,
            .scale = static_cast<float>(score_scale(in.scale, in.q)),
            .out = out.data_ptr<float>(),
            .lse = lse.data_ptr<float>()};
  }
  static kernels::BlockSparseWork packed(const kernels::BlockSparse& a, bool backward) {
    kernels::BlockSparseWork work = kernels::block_sparse_work(a, backward);
    at::parallel_for(0, a.B * a.G, 1, [&](int64_t first, int64_t last) {
      kernels::block_sparse_pack(a, work, first, last);
    });
    return work;
  }
};

bool takes_kernels(const BlockSparseInput& in) {
  return in.q.is_cpu() && in.q.scalar_type() == torch::kFloat &&
         in.k.scalar_type() == torch::kFloat && in.v.scalar_type() == torch::kFloat;
}

}  // namespace

AttentionOutput block_sparse_attention_reference(const BlockSparseInput& in) {
  check(in);
  const int64_t H = in.q.size(1), G = in.k.size(1), Nq = in.q.size(2);
  const double scale = score_scale(in.scale, in.q);
  const auto wide = in.q.scalar_type() == torch::kDouble ? torch::kDouble : torch::kFloat;
  const Tensor k = without_invalid(in.k, in.key_valid).to(wide).repeat_interleave(H / G, 1);
  const Tensor v = without_invalid(in.v, in.key_valid).to(wide).repeat_interleave(H / G, 1);
  std::vector<Tensor> outs, lses;
  for (int64_t first = 0; first == 0 || first < Nq; first += kStrip) {
    const int64_t last = std::min(first + kStrip, Nq);
    const Tensor hidden = visible(in, first, last).logical_not().repeat_interleave(H / G, 1);
    const Tensor q = in.q.slice(2, first, last).to(wide);
    const Tensor scores = (torch::matmul(q, k.transpose(-1, -2)) * scale)
                              .masked_fill(hidden, -std::numeric_limits<double>::infinity());
    const Tensor none = hidden.all(-1, /*keepdim=*/true);
    // Rows that see nothing: a finite row instead, whose result is set to 0.
    const Tensor P = torch::softmax(scores.masked_fill(none, 0), -1).masked_fill(none, 0);
    outs.push_back(torch::matmul(P, v).to(in.v.scalar_type()));
    lses.push_back(torch::logsumexp(scores.detach(), -1));
  }
  return {.out = torch::cat(outs, 2), .lse = torch::cat(lses, 2)};
}

AttentionOutput block_sparse_attention(const BlockSparseInput& in) {
  if (in.q.is_cuda()) {
    const AttentionPath path = block_sparse_path(in);
    if (path == AttentionPath::kReference) return block_sparse_attention_reference(in);
    check(in);
    return block_sparse_attention_gpu(in, path);
  }
  if (!takes_kernels(in)) return block_sparse_attention_reference(in);
  check(in);
  BlockSparseInput rest = in;
  rest.scale = score_scale(in.scale, in.q);
  rest.q = rest.k = rest.v = Tensor();
  const variable_list out =
      Fast::apply(pad_columns(in.q), pad_columns(without_invalid(in.k, in.key_valid)),
                  pad_columns(without_invalid(in.v, in.key_valid)), rest);
  return {.out = first_of(out[0], 3, in.v.size(3)), .lse = out[1]};
}

}  // namespace sigma
