// Which inputs the kernels of a path take.
#include <torch/types.h>

#include <algorithm>
#include <string>

#include "sigma/attention/block_sparse_gpu.h"

namespace sigma {
namespace {

std::string refused(const BlockSparseInput& in, AttentionPath path) {
  const auto dtype = in.q.scalar_type();
  if (dtype != torch::kBFloat16 && dtype != torch::kHalf)
    return "expected bfloat16 or float16, got " + std::string(torch::toString(dtype));
  if (in.k.scalar_type() != dtype || in.v.scalar_type() != dtype)
    return "expected q, k and v of one type";
  const int64_t width = std::max(in.q.size(-1), in.v.size(-1));
  const int64_t widest = path == AttentionPath::kHopper ? 128 : 256;
  if (width > widest)
    return "expected heads of at most " + std::to_string(widest) + " channels, got " +
           std::to_string(width);
  return {};
}

}  // namespace

AttentionPath block_sparse_path(const BlockSparseInput& in) {
  return attention_path("block_sparse_attention", device_path(in.q),
                        [&](AttentionPath path) { return refused(in, path); });
}

}  // namespace sigma
