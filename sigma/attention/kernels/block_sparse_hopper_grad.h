// The backward of block-sparse attention on Hopper (sm_90a), D = Dv 64 or 128, bfloat16, float16.
// With scores s = scale q.k, P = exp(s - lse), delta = grad_out . out (a row's sum):
//   dS = P o (grad_out V^T - delta),  grad_q = scale dS K,  grad_k = scale dS^T Q,
//   grad_v = P^T grad_out.
// Two passes over the lists: grad_q by chunks, grad_k and grad_v by pieces, so nothing is added
// atomically and reruns are equal to the bit. P and dS are rounded once to the 16-bit type.
//
// grad_kv's work. A column is what visits one piece of one (b, g): its pairs (chunk, tokens that
// chose it). Short columns are one task; long ones (the first block of causal lists: everybody) are
// cut into several, whose fp32 sums go to the workspace and are merged in order. How many there are
// is known on the device alone; the grid is their bound, and what is too much returns at once.
#pragma once

#include <cuda_runtime.h>

#include "sigma/attention/kernels/block_walk.h"

namespace sigma::kernels {

// Entries first .. last - 1 of column `column` = (b G + g) P + piece. slot >= 0: where its part of
// the sums goes.
struct GradTask {
  int32_t column, first, last, slot;
};

// In the workspace, made by block_sparse_hopper_grad_tasks.
struct GradWork {
  float2* stats;         // [B,H,Nq] (lse log2 e, delta): block_sparse_delta.h
  int32_t* weight;       // [columns] (token, piece) pairs of a column
  int32_t* base;         // [columns] its first task
  int32_t* parts;        // [columns] its tasks
  int32_t* long_column;  // [kTarget] the columns of more than one task
  int32_t* totals;       // tasks, long columns, pairs a task may have
  GradTask* task;        // [columns + 2 kTarget], those of long columns first
  float* partial;        // [2 kTarget, 2 (dK, dV), 64, D]
};

// A long column's task has at least 1 / kTarget of all pairs. So there are at most 2 kTarget such
// tasks, and none is longer than a fraction of what each multiprocessor has to do.
constexpr int kTarget = 1024;

// Bytes of workspace; depends on sizes only. 256-byte aligned memory, any content.
int64_t block_sparse_hopper_grad_bytes(const BlockSparseGpu& a, const BlockWalk& w);
GradWork block_sparse_hopper_grad_work(const BlockSparseGpu& a, const BlockWalk& w, void* memory);

// The steps behind block_sparse_delta, in this order (grad_q calls grad_q_64 where D is 64; grad_kv
// is for token rows, grad_kv_tiles for tile rows); all of them: block_sparse_hopper_grad.
cudaError_t block_sparse_hopper_grad_tasks(const BlockSparseGpu& a, const BlockWalk& w,
                                           const GradWork& work, cudaStream_t stream);
cudaError_t block_sparse_hopper_grad_q(const BlockSparseGpu& a, const BlockWalk& w,
                                       const GradWork& work, cudaStream_t stream);
cudaError_t block_sparse_hopper_grad_q_64(const BlockSparseGpu& a, const BlockWalk& w,
                                          const GradWork& work, cudaStream_t stream);
cudaError_t block_sparse_hopper_grad_kv(const BlockSparseGpu& a, const BlockWalk& w,
                                        const GradWork& work, cudaStream_t stream);
cudaError_t block_sparse_hopper_grad_kv_tiles(const BlockSparseGpu& a, const BlockWalk& w,
                                              const GradWork& work, cudaStream_t stream);
cudaError_t block_sparse_hopper_grad_merge(const BlockSparseGpu& a, const BlockWalk& w,
                                           const GradWork& work, cudaStream_t stream);

// delta, grad_q, grad_k, grad_v: every row of them is written.
cudaError_t block_sparse_hopper_grad(const BlockSparseGpu& a, const BlockWalk& w, void* memory,
                                     cudaStream_t stream);

}  // namespace sigma::kernels
