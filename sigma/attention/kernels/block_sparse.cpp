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

// Scratch of one task: visits, and the batch of rows that is multiplied next.
struct Scratch {
  std::vector<uint64_t> keys;
  std::vector<Visit> visits;
  std::vector<float> scores, grads, accumulator, top, sum;
  std::vector<const float*> left, right;
  std::vector<float*> target;
  std::vector<int64_t> token, row;
  int64_t batch = 0;

  explicit Scratch(const BlockSparseWork& work)
      : scores(static_cast<size_t>(kChunk * work.widest)),
        grads(scores.size()),
        left(kChunk),
        right(kChunk),
        target(kChunk),
        token(kChunk),
        row(kChunk) {}
  // Adds a row; true when the batch is full.
  bool add(const float* x, int64_t at_token, int64_t at_row) {
    left[batch] = x;
    token[batch] = at_token;
    row[batch] = at_row;
    return ++batch == kChunk;
  }
};

struct Place {
  int64_t bg, b, g;
};

Place place_of(const BlockSparse& a, int64_t bg) { return {bg, bg / a.G, bg % a.G}; }

int64_t row_of(const BlockSparse& a, const Place& at, int64_t token, int64_t head) {
  return (at.b * a.H + at.g * (a.H / a.G) + head) * a.Nq + token;
}

// Scores, then P and dS of the batch against one block, into s.scores and s.grads.
inline __attribute__((always_inline)) void score_gradients(const BlockSparse& a,
                                                           const BlockSparseGrad& g,
                                                           const BlockSparseWork& work,
                                                           const Place& at, const Mask& mask,
                                                           int64_t block, Scratch& s) {
  const int64_t width = padded(mask.last - mask.first);
  const int64_t panel = at.bg * work.column[a.W] + work.column[block];
  gemm_nn(s.batch, s.left.data(), a.D, work.key_panels.data() + panel * a.D, width, s.scores.data(),
          width);
  gemm_nn(s.batch, s.right.data(), a.Dv, work.value_panels.data() + panel * a.Dv, width,
          s.grads.data(), width);
  for (int64_t r = 0; r < s.batch; ++r) {
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

// Adds a token's row of queries and of the output's gradient; true when the batch is full.
bool gather(const BlockSparse& a, const BlockSparseGrad& g, const Place& at, int64_t token,
            int64_t head, Scratch& s) {
  const int64_t row = row_of(a, at, token, head);
  s.right[s.batch] = g.grad_out + row * a.Dv;
  return s.add(a.q + row * a.D, token, row);
}

}  // namespace

SIGMA_MULTIVERSION
void block_sparse_forward(const BlockSparse& a, const BlockSparseWork& work, int64_t task) {
  Scratch s(work);
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
    const auto flush = [&]() __attribute__((always_inline)) {
      gemm_nn(s.batch, s.left.data(), a.D, panel, width, s.scores.data(), width);
      for (int64_t i = 0; i < s.batch; ++i) {
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
      gemm_nn_add(s.batch, s.right.data(), count, values, a.Dv, s.target.data());
      s.batch = 0;
    };
    for (uint64_t bits = visit.tokens; bits != 0; bits &= bits - 1) {
      const int64_t t = __builtin_ctzll(bits);
      for (int64_t m = 0; m < M; ++m) {
        const float* query = a.q + row_of(a, at, chunk.first + t, m) * a.D;
        if (s.add(query, chunk.first + t, t * M + m)) flush();
      }
    }
    if (s.batch > 0) flush();
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
  Scratch s(work);
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
    const auto flush = [&]() __attribute__((always_inline)) {
      score_gradients(a, g, work, at, mask, visit.block, s);
      for (int64_t i = 0; i < s.batch; ++i) {
        s.right[i] = s.grads.data() + i * width;
        s.target[i] = g.grad_q + s.row[i] * a.D;
      }
      gemm_nn_add(s.batch, s.right.data(), count, a.k + (at.bg * a.Nk + mask.first) * a.D, a.D,
                  s.target.data());
      s.batch = 0;
    };
    for (uint64_t bits = visit.tokens; bits != 0; bits &= bits - 1) {
      const int64_t t = chunk.first + __builtin_ctzll(bits);
      for (int64_t m = 0; m < M; ++m) {
        if (gather(a, g, at, t, m, s)) flush();
      }
    }
    if (s.batch > 0) flush();
  }
}

SIGMA_MULTIVERSION
void block_sparse_grad_kv(const BlockSparse& a, const BlockSparseGrad& g,
                          const BlockSparseWork& work, int64_t task) {
  Scratch s(work);
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
  const auto flush = [&]() __attribute__((always_inline)) {
    score_gradients(a, g, work, at, mask, block, s);
    gemm_tn_add(count, s.batch, s.scores.data(), width, s.right.data(), a.Dv, grad_v);
    gemm_tn_add(count, s.batch, s.grads.data(), width, s.left.data(), a.D, grad_k);
    s.batch = 0;
  };
  const int64_t* start = work.col_start.data() + at.bg * (a.W + 1);
  for (int64_t i = start[block]; i < start[block + 1]; ++i) {
    const int64_t row = work.col_row[static_cast<size_t>(i)];
    const int64_t first = a.q_start ? a.q_start[row] : row;
    const int64_t last = a.q_start ? a.q_start[row + 1] : row + 1;
    for (int64_t t = first; t < last; ++t) {
      for (int64_t m = 0; m < M; ++m) {
        if (gather(a, g, at, t, m, s)) flush();
      }
    }
  }
  if (s.batch > 0) flush();
}

}  // namespace sigma::kernels
