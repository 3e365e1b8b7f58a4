#include "sigma/attention/kernels/block_sparse.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "sigma/attention/kernels/small_gemm.h"
#include "sigma/base/simd.h"

namespace sigma::kernels {
namespace {

constexpr int64_t kChunk = kBlockSparseChunk;  // rows of a product, too
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A block, and the tokens of a chunk that listed it.
struct Visit {
  int64_t block;
  uint64_t tokens;  // bit t: token first + t of the chunk listed it
};

// The lists of a chunk as visits, blocks ascending. Entries outside [0, W) are none.
void list_visits(const BlockSparse& a, int64_t bg, const BlockSparseWork::Chunk& chunk,
                 std::vector<uint64_t>& keys, std::vector<Visit>& visits) {
  keys.clear();
  visits.clear();
  const int64_t width = chunk.last - chunk.first;
  const int64_t rows = chunk.row >= 0 ? 1 : width;
  const int64_t first = chunk.row >= 0 ? chunk.row : chunk.first;
  for (int64_t r = 0; r < rows; ++r) {
    const int32_t* list = a.index + (bg * a.R + first + r) * a.n;
    for (int64_t i = 0; i < a.n; ++i) {
      if (list[i] >= 0 && list[i] < a.W)
        keys.push_back(static_cast<uint64_t>(list[i]) << 6 | static_cast<uint64_t>(r));
    }
  }
  std::sort(keys.begin(), keys.end());
  const uint64_t all = width == 64 ? ~uint64_t{0} : (uint64_t{1} << width) - 1;
  for (const uint64_t key : keys) {
    const auto block = static_cast<int64_t>(key >> 6);
    const uint64_t bits = chunk.row >= 0 ? all : uint64_t{1} << (key & 63);
    if (visits.empty() || visits.back().block != block) visits.push_back({block, bits});
    else visits.back().tokens |= bits;
  }
}

// Whether token i may see every key of a block, no key, or some.
struct Mask {
  const BlockSparse& a;
  int64_t b;
  int64_t low = std::numeric_limits<int64_t>::max();  // ranks of the block
  int64_t high = std::numeric_limits<int64_t>::min();
  bool invalid = false;
  int64_t first, last;

  Mask(const BlockSparse& args, int64_t batch, int64_t block)
      : a(args), b(batch), first(args.kv_start[block]), last(args.kv_start[block + 1]) {
    for (int64_t j = first; j < last; ++j) {
      if (a.rank_k) {
        low = std::min(low, a.rank_k[j]);
        high = std::max(high, a.rank_k[j]);
      }
      if (a.key_valid && !a.key_valid[b * a.Nk + j]) invalid = true;
    }
  }
  // Sets the scores of hidden keys, and of the padding up to `width`, to -inf.
  void apply(int64_t token, float* s, int64_t width) const {
    for (int64_t j = last - first; j < width; ++j) s[j] = -kInfinity;
    const bool causal = a.rank_k && high > a.rank_q[token];
    const bool window = a.window > 0 && a.rank_q[token] - low >= a.window;
    if (!causal && !window && !invalid) return;
    for (int64_t j = first; j < last; ++j) {
      const bool hidden = (causal && a.rank_k[j] > a.rank_q[token]) ||
                          (window && a.rank_q[token] - a.rank_k[j] >= a.window) ||
                          (invalid && !a.key_valid[b * a.Nk + j]);
      if (hidden) s[j - first] = -kInfinity;
    }
  }
};

// Scratch of one task.
struct Scratch {
  std::vector<uint64_t> keys;
  std::vector<Visit> visits;
  std::vector<float> scores, grads, accumulator, top, sum;
  std::vector<const float*> left, right;
  std::vector<float*> target;
  std::vector<int64_t> token, row;
};

struct Place {
  int64_t bg, b, g;
};

Place place_of(const BlockSparse& a, int64_t bg) { return {bg, bg / a.G, bg % a.G}; }

int64_t row_of(const BlockSparse& a, const Place& at, int64_t token, int64_t head) {
  return (at.b * a.H + at.g * (a.H / a.G) + head) * a.Nq + token;
}

// Scores, then P and dS of `rows` rows against one block, into scratch.scores and scratch.grads.
inline __attribute__((always_inline)) void score_gradients(
    const BlockSparse& a, const BlockSparseGrad& g, const BlockSparseWork& work, const Place& at,
    const Mask& mask, int64_t block, int64_t rows, Scratch& s) {
  const int64_t width = padded(mask.last - mask.first);
  const int64_t panel = at.bg * work.column[a.W] + work.column[block];
  gemm_nn(rows, s.left.data(), a.D, work.key_panels.data() + panel * a.D, width, s.scores.data(),
          width);
  gemm_nn(rows, s.right.data(), a.Dv, work.value_panels.data() + panel * a.Dv, width,
          s.grads.data(), width);
  for (int64_t r = 0; r < rows; ++r) {
    float* p = s.scores.data() + r * width;
    float* d = s.grads.data() + r * width;
    const float lse = a.lse[s.row[r]];
    mask.apply(s.token[r], p, width);
    if (lse == -kInfinity) {
      std::fill(p, p + width, 0.0f);  // a row without keys
    } else {
      exp_row(p, width, a.scale, lse);
    }
    const float delta = g.delta[s.row[r]];
    for (int64_t c = 0; c < width; c += kLanes)
      store_lanes(d + c, load_lanes(p + c) * (load_lanes(d + c) - delta) * a.scale);
  }
}

void reserve(const BlockSparse& a, Scratch& s) {
  int64_t widest = 0;
  for (int64_t w = 0; w < a.W; ++w)
    widest = std::max(widest, padded(a.kv_start[w + 1] - a.kv_start[w]));
  s.scores.resize(static_cast<size_t>(kChunk * widest));
  s.grads.resize(static_cast<size_t>(kChunk * widest));
  s.left.resize(kChunk);
  s.right.resize(kChunk);
  s.target.resize(kChunk);
  s.token.resize(kChunk);
  s.row.resize(kChunk);
}

}  // namespace

SIGMA_MULTIVERSION
void block_sparse_forward(const BlockSparse& a, const BlockSparseWork& work, int64_t task) {
  Scratch s;
  reserve(a, s);
  const auto chunks = static_cast<int64_t>(work.chunks.size());
  const Place at = place_of(a, task / chunks);
  const BlockSparseWork::Chunk& chunk = work.chunks[static_cast<size_t>(task % chunks)];
  const int64_t M = a.H / a.G;
  const int64_t rows = (chunk.last - chunk.first) * M;
  s.accumulator.assign(static_cast<size_t>(rows * a.Dv), 0);
  s.top.assign(static_cast<size_t>(rows), -kInfinity);
  s.sum.assign(static_cast<size_t>(rows), 0);
  list_visits(a, at.bg, chunk, s.keys, s.visits);
  for (const Visit& visit : s.visits) {
    const Mask mask(a, at.b, visit.block);
    const int64_t count = mask.last - mask.first;
    if (count == 0) continue;
    const int64_t width = padded(count);
    const float* panel =
        work.key_panels.data() + (at.bg * work.column[a.W] + work.column[visit.block]) * a.D;
    const float* values = a.v + (at.bg * a.Nk + mask.first) * a.Dv;
    int64_t batch = 0;
    const auto flush = [&]() __attribute__((always_inline)) {
      gemm_nn(batch, s.left.data(), a.D, panel, width, s.scores.data(), width);
      for (int64_t i = 0; i < batch; ++i) {
        float* p = s.scores.data() + i * width;
        const int64_t r = s.row[i];
        mask.apply(s.token[i], p, width);
        const float top = std::max(s.top[r], max_of(p, width) * a.scale);
        s.right[i] = p;
        s.target[i] = s.accumulator.data() + r * a.Dv;
        if (top == -kInfinity) {  // nothing to see yet
          std::fill(p, p + width, 0.0f);
          continue;
        }
        const float sum = exp_row(p, width, a.scale, top);
        const float fade = std::exp(s.top[r] - top);
        s.sum[r] = s.sum[r] * fade + sum;
        s.top[r] = top;
        if (fade != 1) {
          float* __restrict o = s.target[i];
          for (int64_t d = 0; d < a.Dv; ++d) o[d] *= fade;
        }
      }
      gemm_nn_add(batch, s.right.data(), count, values, a.Dv, s.target.data());
      batch = 0;
    };
    for (uint64_t bits = visit.tokens; bits != 0; bits &= bits - 1) {
      const int64_t t = __builtin_ctzll(bits);
      for (int64_t m = 0; m < M; ++m) {
        s.left[batch] = a.q + row_of(a, at, chunk.first + t, m) * a.D;
        s.token[batch] = chunk.first + t;
        s.row[batch] = t * M + m;
        if (++batch == kChunk) flush();
      }
    }
    if (batch > 0) flush();
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = row_of(a, at, chunk.first + r / M, r % M);
    const float inverse = s.sum[r] > 0 ? 1 / s.sum[r] : 0;
    a.lse[row] = s.sum[r] > 0 ? s.top[r] + std::log(s.sum[r]) : -kInfinity;
    for (int64_t d = 0; d < a.Dv; ++d)
      a.out[row * a.Dv + d] = s.accumulator[r * a.Dv + d] * inverse;
  }
}

SIGMA_MULTIVERSION
void block_sparse_grad_q(const BlockSparse& a, const BlockSparseGrad& g,
                         const BlockSparseWork& work, int64_t task) {
  Scratch s;
  reserve(a, s);
  const auto chunks = static_cast<int64_t>(work.chunks.size());
  const Place at = place_of(a, task / chunks);
  const BlockSparseWork::Chunk& chunk = work.chunks[static_cast<size_t>(task % chunks)];
  const int64_t M = a.H / a.G;
  for (int64_t t = chunk.first; t < chunk.last; ++t) {
    for (int64_t m = 0; m < M; ++m) {
      const int64_t row = row_of(a, at, t, m);
      float delta = 0;
      for (int64_t d = 0; d < a.Dv; ++d)
        delta += g.grad_out[row * a.Dv + d] * a.out[row * a.Dv + d];
      g.delta[row] = delta;
      for (int64_t d = 0; d < a.D; ++d) g.grad_q[row * a.D + d] = 0;
    }
  }
  list_visits(a, at.bg, chunk, s.keys, s.visits);
  for (const Visit& visit : s.visits) {
    const Mask mask(a, at.b, visit.block);
    const int64_t count = mask.last - mask.first;
    const int64_t width = padded(count);
    int64_t batch = 0;
    const auto flush = [&]() __attribute__((always_inline)) {
      score_gradients(a, g, work, at, mask, visit.block, batch, s);
      for (int64_t i = 0; i < batch; ++i) {
        s.right[i] = s.grads.data() + i * width;
        s.target[i] = g.grad_q + s.row[i] * a.D;
      }
      gemm_nn_add(batch, s.right.data(), count, a.k + (at.bg * a.Nk + mask.first) * a.D, a.D,
                  s.target.data());
      batch = 0;
    };
    for (uint64_t bits = visit.tokens; bits != 0; bits &= bits - 1) {
      const int64_t t = chunk.first + __builtin_ctzll(bits);
      for (int64_t m = 0; m < M; ++m) {
        const int64_t row = row_of(a, at, t, m);
        s.left[batch] = a.q + row * a.D;
        s.right[batch] = g.grad_out + row * a.Dv;
        s.token[batch] = t;
        s.row[batch] = row;
        if (++batch == kChunk) flush();
      }
    }
    if (batch > 0) flush();
  }
}

SIGMA_MULTIVERSION
void block_sparse_grad_kv(const BlockSparse& a, const BlockSparseGrad& g,
                          const BlockSparseWork& work, int64_t task) {
  Scratch s;
  reserve(a, s);
  const Place at = place_of(a, task / a.W);
  const int64_t block = task % a.W;
  const Mask mask(a, at.b, block);
  const int64_t count = mask.last - mask.first;
  const int64_t width = padded(count);
  const int64_t M = a.H / a.G;
  float* grad_k = g.grad_k + (at.bg * a.Nk + mask.first) * a.D;
  float* grad_v = g.grad_v + (at.bg * a.Nk + mask.first) * a.Dv;
  for (int64_t i = 0; i < count * a.D; ++i) grad_k[i] = 0;
  for (int64_t i = 0; i < count * a.Dv; ++i) grad_v[i] = 0;
  int64_t batch = 0;
  const auto flush = [&]() __attribute__((always_inline)) {
    score_gradients(a, g, work, at, mask, block, batch, s);
    gemm_tn_add(count, batch, s.scores.data(), width, s.right.data(), a.Dv, grad_v);
    gemm_tn_add(count, batch, s.grads.data(), width, s.left.data(), a.D, grad_k);
    batch = 0;
  };
  const int64_t* start = work.col_start.data() + at.bg * (a.W + 1);
  for (int64_t i = start[block]; i < start[block + 1]; ++i) {
    const int64_t row = work.col_row[static_cast<size_t>(i)];
    const int64_t first = a.q_start ? a.q_start[row] : row;
    const int64_t last = a.q_start ? a.q_start[row + 1] : row + 1;
    for (int64_t t = first; t < last; ++t) {
      for (int64_t m = 0; m < M; ++m) {
        const int64_t r = row_of(a, at, t, m);
        s.left[batch] = a.q + r * a.D;
        s.right[batch] = g.grad_out + r * a.Dv;
        s.token[batch] = t;
        s.row[batch] = r;
        if (++batch == kChunk) flush();
      }
    }
  }
  if (batch > 0) flush();
}

}  // namespace sigma::kernels
