#include "sigma/attention/block_sparse_gpu.h"

#include <torch/autograd.h>
#include <torch/types.h>

#include <algorithm>

#include "sigma/base/error.h"
#ifdef SIGMA_CUDA
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "sigma/attention/kernels/block_sparse_hopper.h"
#include "sigma/attention/kernels/block_sparse_hopper_grad.h"
#include "sigma/attention/kernels/block_sparse_portable.h"
#include "sigma/attention/kernels/block_walk.h"
#endif

namespace sigma {

using torch::Tensor;

#ifdef SIGMA_CUDA
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void check(int status) {
  SIGMA_CHECK(kDevice, status == cudaSuccess, "block_sparse_attention: {}",
              cudaGetErrorString(static_cast<cudaError_t>(status)));
}

Tensor ints(torch::IntArrayRef sizes, const Tensor& like, torch::ScalarType type = torch::kInt) {
  return torch::empty(sizes, like.options().dtype(type));
}

const int32_t* or_null(const Tensor& t) { return t.defined() ? t.data_ptr<int32_t>() : nullptr; }

// Lists as walks, with the memory that holds them.
struct Walk {
  kernels::BlockWalk view;
  Tensor count, piece, chose;
  Tensor col_start, col_chunk, col_chose;
};

Walk walk_of(const BlockSparseInput& in, const BlockTables& tables, cudaStream_t stream) {
  const int64_t B = in.q.size(0), G = in.k.size(1), C = tables.chunks(), P = tables.pieces();
  const bool tiles = in.q_start.defined();
  const int64_t lists = tiles ? 1 : tables.tokens;  // of a chunk
  const int64_t cap = std::min(P, lists * in.index.size(3) * tables.pieces_a_block);
  Walk out{.view = {.B = B,
                    .G = G,
                    .C = C,
                    .P = P,
                    .cap = cap,
                    .tokens = static_cast<int>(tables.tokens),
                    .heads = static_cast<int>(tables.heads),
                    .q_first = or_null(tables.q_first),
                    .key_first = or_null(tables.key_first)},
           .count = ints({B, G, C}, in.index),
           .piece = ints({B, G, C, cap}, in.index)};
  out.view.count = or_null(out.count);
  out.view.piece = or_null(out.piece);
  if (!tiles) {
    out.chose = ints({B, G, C, cap}, in.index, torch::kInt64);
    out.view.chose = reinterpret_cast<const uint64_t*>(out.chose.data_ptr<int64_t>());
  }
  out.view.lists = {.R = in.index.size(2),
                    .n = in.index.size(3),
                    .W = in.kv_start.size(0) - 1,
                    .index = or_null(in.index),
                    .piece_start = or_null(tables.piece_start),
                    .chunk_list = or_null(tables.chunk_list),
                    .chunk_ranks = or_null(tables.chunk_ranks),
                    .piece_ranks = or_null(tables.piece_ranks),
                    .piece_masked = tables.piece_masked.data_ptr<uint8_t>(),
                    .any_masked = in.key_valid.defined(),
                    .window = static_cast<int32_t>(in.window),
                    .pieces_a_block = static_cast<int>(tables.pieces_a_block)};
  check(kernels::block_walk(out.view, stream));
  return out;
}

void turn_round(Walk& walk, cudaStream_t stream) {
  auto& view = walk.view;
  walk.col_start = ints({view.B, view.G, view.P + 1}, walk.count);
  walk.col_chunk = ints({view.B, view.G, view.C * view.cap}, walk.count);
  view.col_start = or_null(walk.col_start);
  view.col_chunk = or_null(walk.col_chunk);
  if (walk.chose.defined()) {
    walk.col_chose = torch::empty_like(walk.col_chunk, walk.chose.options());
    view.col_chose = reinterpret_cast<const uint64_t*>(walk.col_chose.data_ptr<int64_t>());
  }
  const Tensor work = ints({kernels::block_walk_columns_work(view)}, walk.count);
  check(kernels::block_walk_columns(view, work.data_ptr<int32_t>(), stream));
}

kernels::BlockSparseGpu arguments(const BlockSparseInput& in, const BlockTables& tables,
                                  const Tensor& out, const Tensor& lse) {
  return {.B = in.q.size(0),
          .H = in.q.size(1),
          .G = in.k.size(1),
          .Nq = in.q.size(2),
          .Nk = in.k.size(2),
          .D = in.q.size(3),
          .Dv = in.v.size(3),
          .half = in.q.scalar_type() == torch::kHalf,
          .q = in.q.data_ptr(),
          .k = in.k.data_ptr(),
          .v = in.v.data_ptr(),
          .rank_q = or_null(tables.rank_q),
          .rank_k = or_null(tables.rank_k),
          .window = static_cast<int32_t>(in.window),
          .key_valid = in.key_valid.defined()
                           ? reinterpret_cast<const uint8_t*>(in.key_valid.data_ptr<bool>())
                           : nullptr,
          .scale = static_cast<float>(in.scale),
          .out = out.data_ptr(),
          .lse = lse.data_ptr<float>()};
}

// What the backward needs beside tensors that have gradients.
struct Saved : torch::CustomClassHolder {
  BlockSparseInput rest;
  Walk walk;
  AttentionPath path = AttentionPath::kPortable;
};

class Gpu : public torch::autograd::Function<Gpu> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& k,
                               const Tensor& v, const BlockSparseInput& rest, AttentionPath path) {
    const c10::cuda::CUDAGuard guard(q.device());
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
    BlockSparseInput in = rest;
    in.q = q.contiguous();
    in.k = k.contiguous();
    in.v = v.contiguous();
    in.index = in.index.contiguous();
    if (in.key_valid.defined()) in.key_valid = in.key_valid.contiguous();
    const Tensor out = torch::empty({q.size(0), q.size(1), q.size(2), v.size(3)}, q.options());
    const Tensor lse =
        torch::empty({q.size(0), q.size(1), q.size(2)}, q.options().dtype(torch::kFloat));
    auto saved = c10::make_intrusive<Saved>();
    saved->walk = walk_of(in, *in.tables, stream);
    saved->path = path;
    const kernels::BlockSparseGpu a = arguments(in, *in.tables, out, lse);
    const kernels::BlockWalk& walk = saved->walk.view;
    if (path == AttentionPath::kHopper) {
      const Tensor work =
          ints({kernels::block_sparse_hopper_forward_bytes(a, walk)}, in.index, torch::kByte);
      check(kernels::block_sparse_hopper_forward(a, walk, work.data_ptr(), stream));
    } else {
      check(kernels::block_sparse_portable_forward(a, walk, stream));
    }
    ctx->save_for_backward({in.q, in.k, in.v, out, lse});
    in.q = in.k = in.v = Tensor();
    saved->rest = in;
    ctx->saved_data["saved"] = c10::IValue::make_capsule(std::move(saved));
    ctx->mark_non_differentiable({lse});
    return {out, lse};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list tensors = ctx->get_saved_variables();
    const c10::cuda::CUDAGuard guard(tensors[0].device());
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
    const auto capsule = ctx->saved_data["saved"].toCapsule();
    Saved& saved = static_cast<Saved&>(*capsule);
    BlockSparseInput in = saved.rest;
    in.q = tensors[0];
    in.k = tensors[1];
    in.v = tensors[2];
    if (!saved.walk.col_start.defined()) turn_round(saved.walk, stream);
    const Tensor grad_out = grads[0].contiguous();
    const Tensor delta = torch::empty_like(tensors[4]);
    const Tensor grad_q = torch::empty_like(in.q);
    const Tensor grad_k = torch::empty_like(in.k);
    const Tensor grad_v = torch::empty_like(in.v);
    kernels::BlockSparseGpu a = arguments(in, *in.tables, tensors[3], tensors[4]);
    a.grad_out = grad_out.data_ptr();
    a.delta = delta.data_ptr<float>();
    a.grad_q = grad_q.data_ptr();
    a.grad_k = grad_k.data_ptr();
    a.grad_v = grad_v.data_ptr();
    const kernels::BlockWalk& walk = saved.walk.view;
    if (saved.path == AttentionPath::kHopper) {
      const Tensor work =
          ints({kernels::block_sparse_hopper_grad_bytes(a, walk)}, in.index, torch::kByte);
      check(kernels::block_sparse_hopper_grad(a, walk, work.data_ptr(), stream));
    } else {
      kernels::PortableParts parts = kernels::block_sparse_portable_parts(a, walk);
      const Tensor sums = torch::empty({parts.floats}, delta.options());
      parts.sums = sums.data_ptr<float>();
      check(kernels::block_sparse_portable_backward(a, walk, parts, stream));
    }
    return {grad_q, grad_k, grad_v, Tensor(), Tensor()};
  }
};

int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

}  // namespace
#endif

AttentionOutput block_sparse_attention_gpu(const BlockSparseInput& in, AttentionPath path) {
#ifdef SIGMA_CUDA
  if (in.q.numel() == 0 || in.k.numel() == 0) return block_sparse_attention_reference(in);
  BlockSparseInput rest = in;
  rest.scale = score_scale(in.scale, in.q);
  if (!rest.tables) rest.tables = block_tables(in);
  rest.q = rest.k = rest.v = Tensor();
  int64_t D = round_up(in.q.size(3), 16), Dv = round_up(in.v.size(3), 16);
  if (path == AttentionPath::kHopper) D = Dv = round_up(std::max(D, Dv), 64);
  const variable_list out =
      Gpu::apply(pad_columns(in.q, D), pad_columns(without_invalid(in.k, in.key_valid), D),
                 pad_columns(without_invalid(in.v, in.key_valid), Dv), rest, path);
  return {.out = first_of(out[0], 3, in.v.size(3)), .lse = out[1]};
#else
  fail(ErrorKind::kDevice, "block_sparse_attention: this build has no CUDA kernels");
#endif
}

}  // namespace sigma
