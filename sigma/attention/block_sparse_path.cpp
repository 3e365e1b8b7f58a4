// Which path runs.
#include <c10/util/Exception.h>
#include <torch/types.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#include "sigma/attention/block_sparse_gpu.h"
#include "sigma/base/error.h"
#ifdef SIGMA_CUDA
#include <ATen/cuda/CUDAContext.h>
#endif

namespace sigma {
namespace {

// Why no kernel takes `in`; empty: one does.
std::string refused(const BlockSparseInput& in, BlockSparsePath path) {
#ifdef SIGMA_CUDA
  const auto dtype = in.q.scalar_type();
  if (dtype != torch::kBFloat16 && dtype != torch::kHalf)
    return "expected bfloat16 or float16, got " + std::string(torch::toString(dtype));
  if (in.k.scalar_type() != dtype || in.v.scalar_type() != dtype)
    return "expected q, k and v of one type";
  const int64_t width = std::max(in.q.size(-1), in.v.size(-1));
  const int64_t widest = path == BlockSparsePath::kHopper ? 128 : 256;
  if (width > widest)
    return "expected heads of at most " + std::to_string(widest) + " channels, got " +
           std::to_string(width);
  const cudaDeviceProp* device = at::cuda::getDeviceProperties(in.q.get_device());
  if (path == BlockSparsePath::kHopper && device->major != 9)
    return "expected a GPU of compute capability 9.0";
  if (device->major < 8) return "expected a GPU of compute capability 8.0 or later";
  return {};
#else
  return "this build has no CUDA kernels";
#endif
}

}  // namespace

BlockSparsePath block_sparse_path(const BlockSparseInput& in) {
  const char* asked = std::getenv("SIGMA_ATTENTION");
  const std::string name = asked ? asked : "";
  if (name == "reference") return BlockSparsePath::kReference;
  if (name == "portable" || name == "hopper") {
    const auto path = name == "hopper" ? BlockSparsePath::kHopper : BlockSparsePath::kPortable;
    const std::string why = refused(in, path);
    SIGMA_CHECK(kUsage, why.empty(), "SIGMA_ATTENTION={}: {}", name, why);
    return path;
  }
  SIGMA_CHECK(kUsage, name.empty(),
              "SIGMA_ATTENTION: expected reference, portable or hopper, got {}", name);
  for (const auto path : {BlockSparsePath::kHopper, BlockSparsePath::kPortable})
    if (refused(in, path).empty()) return path;
  TORCH_WARN_ONCE("block_sparse_attention: the reference runs: ",
                  refused(in, BlockSparsePath::kPortable));
  return BlockSparsePath::kReference;
}

}  // namespace sigma
