#include "sigma/attention/block_tables.h"

#include <torch/types.h>

#include <algorithm>

#include "sigma/attention/block_sparse.h"
#include "sigma/attention/kernels/block_walk.h"

namespace sigma {
namespace {

using torch::Tensor;

// Parts of at most `size` of the ranges between `starts`.
struct Parts {
  std::vector<int32_t> first;        // of each part, and the end
  std::vector<int32_t> range;        // of each part
  std::vector<int32_t> range_start;  // first part of each range, and the end
};

Parts parts_of(const Tensor& starts, int64_t size) {
  const Tensor s = starts.contiguous();
  const int64_t* at = s.data_ptr<int64_t>();
  Parts out;
  out.range_start.push_back(0);
  for (int64_t i = 0; i + 1 < s.size(0); ++i) {
    for (int64_t first = at[i]; first < at[i + 1]; first += size) {
      out.first.push_back(static_cast<int32_t>(first));
      out.range.push_back(static_cast<int32_t>(i));
    }
    out.range_start.push_back(static_cast<int32_t>(out.range.size()));
  }
  out.first.push_back(static_cast<int32_t>(at[s.size(0) - 1]));
  return out;
}

Tensor on_device(const std::vector<int32_t>& values, torch::Device device) {
  return torch::tensor(values, torch::kInt).to(device);
}

// Lowest and highest rank of each part.
Tensor extremes(const std::vector<int32_t>& first, const Tensor& ranks) {
  const Tensor r = ranks.to(torch::kInt).contiguous();
  const int32_t* rank = r.data_ptr<int32_t>();
  std::vector<int32_t> out;
  for (size_t i = 0; i + 1 < first.size(); ++i) {
    const auto [low, high] = std::minmax_element(rank + first[i], rank + first[i + 1]);
    out.insert(out.end(), {*low, *high});
  }
  return torch::tensor(out, torch::kInt).view({-1, 2});
}

// Heads of a key/value head that share a chunk of token rows.
int64_t heads_of_chunk(int64_t heads) {
  int64_t out = std::min<int64_t>(heads, kernels::kPiece);
  while (heads % out != 0) --out;
  return out;
}

}  // namespace

std::shared_ptr<const BlockTables> block_tables(const BlockSparseInput& in) {
  const torch::Device device = in.q.device();
  auto out = std::make_shared<BlockTables>();
  const bool tiles = in.q_start.defined();
  if (!tiles) {
    out->heads = heads_of_chunk(in.q.size(1) / in.k.size(1));
    out->tokens = kernels::kPiece / out->heads;
  }
  const Parts chunks =
      parts_of(tiles ? in.q_start : torch::tensor({int64_t{0}, in.q.size(2)}), out->tokens);
  const Parts pieces = parts_of(in.kv_start, kernels::kPiece);
  std::vector<int32_t> lists(chunks.first.begin(), chunks.first.end() - 1);
  out->chunk_list = on_device(tiles ? chunks.range : lists, device);
  out->q_first = on_device(chunks.first, device);
  out->key_first = on_device(pieces.first, device);
  out->piece_start = on_device(pieces.range_start, device);
  std::vector<uint8_t> ragged;
  for (size_t p = 0; p + 1 < pieces.first.size(); ++p)
    ragged.push_back(pieces.first[p + 1] - pieces.first[p] < kernels::kPiece ? 1 : 0);
  out->piece_masked = torch::tensor(ragged, torch::kByte).to(device);
  for (size_t w = 0; w + 1 < pieces.range_start.size(); ++w)
    out->pieces_a_block =
        std::max<int64_t>(out->pieces_a_block, pieces.range_start[w + 1] - pieces.range_start[w]);
  if (in.rank_q.defined()) {
    out->rank_q = in.rank_q.to(device, torch::kInt).contiguous();
    out->rank_k = in.rank_k.to(device, torch::kInt).contiguous();
    out->chunk_ranks = extremes(chunks.first, in.rank_q).to(device);
    out->piece_ranks = extremes(pieces.first, in.rank_k).to(device);
  }
  return out;
}

}  // namespace sigma
