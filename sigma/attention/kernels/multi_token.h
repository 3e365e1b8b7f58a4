// Multi-token attention on the CPU, float32, without score maps in memory. Torch-free. The operator
// and its definition: sigma/attention/multi_token_op.h.
//
// A task makes the maps of one strip of queries and all keys, for the heads that mix with each
// other, from the scores to the output; a strip overlaps its neighbours by the rows that the two
// convolutions reach. The backward makes the maps again:
//
//   S = scale Q K^T,  C = theta * S,  P = softmax(w C),  E = phi * P,  A = m E,  O = A V
//   dV = A^T dO,  dA = dO V^T,  dm = dA . E,  dE = m^T dA,  dphi = dE . P,  dP = phi' * dE
//   dC' = P (dP - sum(P dP)),  dw = dC' . C,  dC = w^T dC',  dtheta = dC . S,  dS = theta' * dC
//   dQ = scale dS K,  dK = scale dS^T Q
//
// Tokens stand in places: the grid's rows apart from each other by as many empty places (zero
// queries, keys and values) as a convolution reaches, so that a step to a neighbour on any axis is
// one number; then, from `isolated` on, tokens without neighbours. Every sum has a fixed order.
#pragma once

#include <cstdint>

namespace sigma::kernels {

struct MapConvolution {
  int64_t queries = 1;  // offsets of queries
  int64_t keys = 1;
  const int64_t* query_step = nullptr;  // [queries] in places
  const int64_t* key_step = nullptr;    // [keys]
  const float* weight = nullptr;        // [H, queries, keys]
  int64_t heads = 1;                    // that mix afterwards
  const float* mix = nullptr;           // [H/heads, heads, heads] (to, from); null: none
  int64_t taps() const { return queries * keys; }
};

struct MultiToken {
  int64_t B = 0, H = 0, D = 0, Dv = 0;  // D, Dv: multiples of 16
  int64_t places = 0;                   // a multiple of 64
  int64_t queries = 0;                  // places after the last token are left out
  int64_t isolated = 0;                 // a multiple of 32
  const float* q = nullptr;             // [B,H,places,D]
  const float* k = nullptr;
  const float* v = nullptr;        // [B,H,places,Dv]
  const float* bias = nullptr;     // [B,places]: 0 for keys that are there, else -inf
  const int64_t* rank = nullptr;   // [places]: keys of a higher rank are hidden; null: none are
  bool ordered = false;            // rank[i] = i, and no query step is negative
  const bool* is_token = nullptr;  // [places]
  float scale = 1;
  MapConvolution before, after;  // the softmax
  float* out = nullptr;          // [B,H,places,Dv]
  float* lse = nullptr;          // [B,H,places]
};

/// Gradients of the parts are added up by the caller, in order.
struct MultiTokenGrad {
  const float* grad_out = nullptr;  // [B,H,places,Dv]
  float* q = nullptr;               // [B,H,places,D]
  float* k = nullptr;               // [parts,B,H,places,D], 0 at first
  float* v = nullptr;               // [parts,B,H,places,Dv], 0 at first
  double* before = nullptr;         // [parts,B,H,taps], 0 at first
  double* after = nullptr;
  double* before_mix = nullptr;  // [parts,B,H,heads], 0 at first
  double* after_mix = nullptr;
};

/// Sizes that the shapes alone decide. A task is a run of strips of some heads of one image.
struct MultiTokenWork {
  int64_t heads = 1;   // of a task
  int64_t strip = 64;  // queries of a strip
  int64_t strips = 0;
  int64_t groups = 0;         // B * H/heads
  int64_t forward_parts = 1;  // runs of strips: tasks = parts * groups
  int64_t parts = 1;          // the same of the backward, which adds up gradients for each
};
MultiTokenWork multi_token_work(const MultiToken& a);

void multi_token_forward(const MultiToken& a, const MultiTokenWork& work, int64_t task);
void multi_token_backward(const MultiToken& a, const MultiTokenGrad& g, const MultiTokenWork& work,
                          int64_t task);

}  // namespace sigma::kernels
