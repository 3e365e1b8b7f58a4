#include <algorithm>

#include "sigma/attention/kernels/block_sparse.h"
#include "sigma/attention/kernels/small_gemm.h"

namespace sigma::kernels {

BlockSparseWork block_sparse_work(const BlockSparse& a, bool backward) {
  BlockSparseWork work;
  if (a.q_start) {
    for (int64_t r = 0; r < a.R; ++r) {
      for (int64_t t = a.q_start[r]; t < a.q_start[r + 1]; t += kBlockSparseChunk)
        work.chunks.push_back({r, t, std::min(t + kBlockSparseChunk, a.q_start[r + 1])});
    }
  } else {
    for (int64_t t = 0; t < a.Nq; t += kBlockSparseChunk)
      work.chunks.push_back({-1, t, std::min(t + kBlockSparseChunk, a.Nq)});
  }
  work.column.assign(1, 0);
  for (int64_t w = 0; w < a.W; ++w) {
    const int64_t width = padded(a.kv_start[w + 1] - a.kv_start[w]);
    work.column.push_back(work.column.back() + width);
    work.widest = std::max(work.widest, width);
  }
  const auto pairs = a.B * a.G;
  work.key_panels.resize(static_cast<size_t>(pairs * work.column[a.W] * a.D));
  if (!backward) return work;
  work.value_panels.resize(static_cast<size_t>(pairs * work.column[a.W] * a.Dv));
  // A stable counting sort of (block, row): rows ascend within a block.
  work.col_start.assign(static_cast<size_t>(pairs * (a.W + 1)), 0);
  work.col_row.resize(static_cast<size_t>(pairs * a.R * a.n));
  std::vector<int64_t> next(static_cast<size_t>(a.W));
  for (int64_t bg = 0; bg < pairs; ++bg) {
    int64_t* start = work.col_start.data() + bg * (a.W + 1);
    const int32_t* lists = a.index + bg * a.R * a.n;
    const auto known = [&](int32_t w) { return w >= 0 && w < a.W; };
    for (int64_t i = 0; i < a.R * a.n; ++i) {
      if (known(lists[i])) ++start[lists[i] + 1];
    }
    start[0] = bg * a.R * a.n;
    for (int64_t w = 0; w < a.W; ++w) start[w + 1] += start[w];
    std::copy(start, start + a.W, next.begin());
    for (int64_t i = 0; i < a.R * a.n; ++i) {
      if (known(lists[i])) work.col_row[next[lists[i]]++] = static_cast<int32_t>(i / a.n);
    }
  }
  return work;
}

void block_sparse_pack(const BlockSparse& a, BlockSparseWork& work, int64_t first, int64_t last) {
  const auto transpose = [&](const float* from, int64_t D, std::vector<float>& panels, int64_t bg) {
    for (int64_t w = 0; w < a.W; ++w) {
      const int64_t begin = a.kv_start[w];
      const int64_t count = a.kv_start[w + 1] - begin;
      const int64_t width = padded(count);
      float* to = panels.data() + (bg * work.column[a.W] + work.column[w]) * D;
      for (int64_t d = 0; d < D; ++d) {
        for (int64_t j = 0; j < width; ++j)
          to[d * width + j] = j < count ? from[(bg * a.Nk + begin + j) * D + d] : 0;
      }
    }
  };
  for (int64_t bg = first; bg < last; ++bg) {
    transpose(a.k, a.D, work.key_panels, bg);
    if (!work.value_panels.empty()) transpose(a.v, a.Dv, work.value_panels, bg);
  }
}

}  // namespace sigma::kernels
