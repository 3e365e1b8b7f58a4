// How GPU kernels walk lists of blocks. Torch-free; all pointers are device memory.
//
// Queries are cut into chunks, keys into pieces. A chunk is up to `tokens` neighbouring queries of
// `heads` heads of one key/value head: tokens * heads <= 64, the rows of one matrix instruction,
// row = head * tokens + token. A piece is up to 64 neighbouring keys of one block (a whole one, if
// blocks have at most 64).
//
//   tile rows   tokens 64, heads 1: the queries of a tile, whose list all of them share
//   token rows  heads = M = H / G (M <= 64), tokens = 64 / M: the union of the tokens' lists, and
//               which of the tokens chose each piece
//
// A list's walk visits its pieces in ascending order. Pieces that no query of the chunk may see are
// left out; kMasked marks those where ranks, the window, key_valid or fewer than 64 keys hide some
// pairs.
#pragma once

#include <cstdint>

namespace sigma::kernels {

constexpr int kPiece = 64;  // keys of a piece, rows of a chunk
constexpr int32_t kMasked = 1 << 30;

/// How a walk is made: lists, and what a layout fixes.
struct BlockWalkInput {
  int64_t R = 0, n = 0, W = 0;            // lists a (b, g), their length, blocks
  const int32_t* index = nullptr;         // [B,G,R,n] distinct blocks; outside 0..W-1: none
  const int32_t* piece_start = nullptr;   // [W+1] first piece of each block
  const int32_t* chunk_list = nullptr;    // [C] first list of a chunk; its tokens have one each,
                                          // or, for tile rows, all of them this one
  const int32_t* chunk_ranks = nullptr;   // [C,2] lowest, highest rank_q; null: not causal
  const int32_t* piece_ranks = nullptr;   // [P,2] lowest, highest rank_k
  const uint8_t* piece_masked = nullptr;  // [P] fewer than 64 keys
  bool any_masked = false;                // each piece may be: there is a key_valid
  int32_t window = 0;
  int pieces_a_block = 1;  // at most
};

struct BlockWalk {
  int64_t B = 0, G = 0;
  int64_t C = 0;                       // chunks
  int64_t P = 0;                       // pieces
  int64_t cap = 0;                     // room for the walk of a chunk
  int tokens = 64, heads = 1;          // of a chunk
  const int32_t* q_first = nullptr;    // [C+1] first query of each chunk, and the end
  const int32_t* key_first = nullptr;  // [P+1] first key of each piece, and the end
  const int32_t* count = nullptr;      // [B,G,C] pieces of a walk
  const int32_t* piece = nullptr;      // [B,G,C,cap] piece, perhaps | kMasked
  const uint64_t* chose = nullptr;     // [B,G,C,cap] bit t: token t chose it; null: all did
  // Turned round, for the backward: the chunks that visit a piece, ascending.
  const int32_t* col_start = nullptr;  // [B,G,P+1] from the (b, g)'s own C * cap entries
  const int32_t* col_chunk = nullptr;  // [B,G,C*cap] chunk, perhaps | kMasked
  const uint64_t* col_chose = nullptr;
  BlockWalkInput lists;  // what it was made from
};

/// Fills count, piece and, for token rows (walk.chose not null), chose from walk.lists. The result
/// is a cudaError_t.
int block_walk(const BlockWalk& walk, void* stream);

/// Turns the walks round, a stable counting sort: col_start, col_chunk, col_chose. `work`: as many
/// int32 as the first says.
int64_t block_walk_columns_work(const BlockWalk& walk);
int block_walk_columns(const BlockWalk& walk, int32_t* work, void* stream);

struct BlockSparseGpu {
  int64_t B = 0, H = 0, G = 0, Nq = 0, Nk = 0, D = 0, Dv = 0;
  bool half = false;                   // float16, else bfloat16
  const void* q = nullptr;             // [B,H,Nq,D], contiguous as all others
  const void* k = nullptr;             // [B,G,Nk,D]
  const void* v = nullptr;             // [B,G,Nk,Dv]
  const int32_t* rank_q = nullptr;     // [Nq]; null: not causal
  const int32_t* rank_k = nullptr;     // [Nk]
  int32_t window = 0;                  // > 0: only keys with rank_q - rank_k < window
  const uint8_t* key_valid = nullptr;  // [B,Nk]; null: all
  float scale = 1;
  void* out = nullptr;   // [B,H,Nq,Dv]
  float* lse = nullptr;  // [B,H,Nq] natural log; -inf where nothing is seen
  // backward
  const void* grad_out = nullptr;  // [B,H,Nq,Dv]
  float* delta = nullptr;          // [B,H,Nq], written first: grad_out . out
  void* grad_q = nullptr;
  void* grad_k = nullptr;
  void* grad_v = nullptr;
};

}  // namespace sigma::kernels
