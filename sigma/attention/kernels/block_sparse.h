// Block-sparse attention on the CPU, float32: rows of queries against the key blocks they list.
// Torch-free. The operator, its shapes and its definition: sigma/attention/block_sparse.h.
//
// A task is a chunk of up to 64 tokens and the heads of one key/value head. It walks the union of
// its tokens' lists once; a block is multiplied with the rows that listed it, 64 at a time, and an
// online softmax keeps a maximum and a sum a row:
//
//   S = Q K^T,  P = exp(scale S - m),  O = O exp(m_old - m) + P V
//   at the end O / l,  lse = m + log l
//
// The backward recomputes P from lse; delta = dO . O; dS = P (dO V^T - delta):
//
//   by chunks of queries:  dQ = scale dS K
//   by blocks of keys:     dV = P^T dO,  dK = scale dS^T Q
//
// Every sum has a fixed order, so that the bits do not depend on the number of threads. D and Dv
// are multiples of 16; all tensors are contiguous.
#pragma once

#include <cstdint>
#include <vector>

namespace sigma::kernels {

constexpr int64_t kBlockSparseChunk = 64;  // tokens of a chunk

struct BlockSparse {
  int64_t B = 0, H = 0, G = 0, Nq = 0, Nk = 0, D = 0, Dv = 0;
  int64_t W = 0;                      // blocks
  int64_t R = 0;                      // rows that have a list: tiles, or Nq tokens
  int64_t n = 0;                      // length of a list
  const float* q = nullptr;           // [B,H,Nq,D]
  const float* k = nullptr;           // [B,G,Nk,D]
  const float* v = nullptr;           // [B,G,Nk,Dv]
  const int32_t* index = nullptr;     // [B,G,R,n], distinct blocks; -1: none
  const int64_t* q_start = nullptr;   // [R+1]; null: a list for every token
  const int64_t* kv_start = nullptr;  // [W+1]
  const int64_t* rank_q = nullptr;    // [Nq]; null: not causal
  const int64_t* rank_k = nullptr;    // [Nk]
  int64_t window = 0;                 // > 0: only keys with rank_q - rank_k < window
  const bool* key_valid = nullptr;    // [B,Nk]; null: all
  float scale = 1;
  float* out = nullptr;  // [B,H,Nq,Dv]
  float* lse = nullptr;  // [B,H,Nq]
};

struct BlockSparseGrad {
  const float* grad_out = nullptr;  // [B,H,Nq,Dv]
  float* delta = nullptr;           // [B,H,Nq], written first
  float* grad_q = nullptr;
  float* grad_k = nullptr;
  float* grad_v = nullptr;
};

/// What both passes need: chunks of queries, key panels [D, block] padded to 16 columns, and the
/// lists turned round.
struct BlockSparseWork {
  struct Chunk {
    int64_t row, first, last;  // row: the tile; -1: token rows
  };
  std::vector<Chunk> chunks;
  std::vector<int64_t> column;      // [W+1]: padded start of each block's panel
  int64_t widest = 0;               // columns of the widest panel
  std::vector<float> key_panels;    // [B,G] x column[W] x D
  std::vector<float> value_panels;  // backward: [B,G] x column[W] x Dv
  std::vector<int64_t> col_start;   // backward: [B,G] x (W+1)
  std::vector<int32_t> col_row;     // rows that list a block, ascending
};

/// Sizes everything and turns the lists round (for a backward).
BlockSparseWork block_sparse_work(const BlockSparse& a, bool backward);
/// Panels of the (batch, group) pairs [first, last).
void block_sparse_pack(const BlockSparse& a, BlockSparseWork& work, int64_t first, int64_t last);

/// Task i of B * G * chunks.
void block_sparse_forward(const BlockSparse& a, const BlockSparseWork& work, int64_t task);
void block_sparse_grad_q(const BlockSparse& a, const BlockSparseGrad& g,
                         const BlockSparseWork& work, int64_t task);
/// Task i of B * G * W: the gradients of one block's keys and values.
void block_sparse_grad_kv(const BlockSparse& a, const BlockSparseGrad& g,
                          const BlockSparseWork& work, int64_t task);

}  // namespace sigma::kernels
