#include "sigma/attention/selection_gpu.h"

#include <torch/types.h>

#include <algorithm>
#include <string>

#include "sigma/attention/path.h"
#include "sigma/attention/windows.h"
#include "sigma/base/error.h"
#ifdef SIGMA_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "sigma/attention/kernels/select_blocks.h"
#endif

namespace sigma {

using torch::Tensor;

SelectionTables selection_tables(const SelectionConfig& config, const BlockGeometry& geometry,
                                 const Tensor& window_rank, bool causal, torch::Device device) {
  check_forced(config, geometry, causal);
  const auto on_device = [&](const Tensor& x) { return x.to(torch::kInt).contiguous().to(device); };
  const int64_t Ng = geometry.grid.size();
  SelectionTables out;
  if (causal) {
    out.seen = on_device(torch::searchsorted(window_rank, geometry.rank().slice(0, 0, Ng),
                                             /*out_int32=*/false, /*right=*/true));
    out.own = on_device(geometry.block_of.slice(0, 0, Ng));
  } else {
    out.tile_start = on_device(geometry.start.slice(0, 0, geometry.grid_blocks + 1));
  }
  if (config.strategy != "top_n") out.block_windows = cube_windows(geometry).to(device);
  return out;
}

#ifdef SIGMA_CUDA
namespace {

const int32_t* or_null(const Tensor& t) { return t.defined() ? t.data_ptr<int32_t>() : nullptr; }

std::string refused(torch::ScalarType dtype) {
  if (dtype == torch::kFloat || dtype == torch::kHalf || dtype == torch::kBFloat16) return {};
  return "expected float32, float16 or bfloat16, got " + std::string(torch::toString(dtype));
}

}  // namespace

Tensor select_blocks_gpu(const SelectionConfig& config, const BlockGeometry& geometry,
                         const SelectionTables& tables, const SelectionInput& input) {
  const auto fastest = std::min(device_path(input.q), AttentionPath::kPortable);
  const AttentionPath path = attention_path(
      "selection", fastest, [&](AttentionPath) { return refused(input.q.scalar_type()); });
  if (path == AttentionPath::kReference) return {};
  const torch::NoGradGuard no_grad;
  const c10::cuda::CUDAGuard guard(input.q.device());
  const Tensor q = input.q.detach().contiguous(), ck = input.ck.detach().contiguous();
  const bool causal = tables.seen.defined();
  const bool sequence = geometry.grid.axes() == 1;
  kernels::SelectBlocksGpu a{.B = q.size(0),
                             .H = q.size(1),
                             .G = ck.size(1),
                             .D = q.size(3),
                             .N = q.size(2),
                             .R = causal ? q.size(2) : geometry.grid_blocks,
                             .windows = ck.size(2),
                             .W = geometry.grid_blocks};
  switch (q.scalar_type()) {
    case torch::kFloat: a.type = kernels::SelectType::kFloat32; break;
    case torch::kHalf: a.type = kernels::SelectType::kFloat16; break;
    default: a.type = kernels::SelectType::kBfloat16; break;
  }
  const auto floats = [&](torch::IntArrayRef sizes) {
    return torch::empty(sizes, q.options().dtype(torch::kFloat));
  };
  a.q = q.data_ptr();
  a.ck = ck.data_ptr();
  a.scale = static_cast<float>(input.scale);
  a.lse_given = input.lse.defined() && input.lse.scalar_type() == torch::kFloat;
  const Tensor lse = a.lse_given ? input.lse.contiguous() : floats({a.B, a.H, a.N});
  a.lse = lse.data_ptr<float>();
  a.seen = or_null(tables.seen);
  a.tile_start = or_null(tables.tile_start);
  if (sequence) {
    a.size = static_cast<int32_t>(input.size);
    a.stride = static_cast<int32_t>(input.stride);
    a.block = static_cast<int32_t>(geometry.block.size());
  }
  const ForcedBlocks forced = forced_of(config, causal);
  a.n = config.num_selected;
  a.own = or_null(tables.own);
  a.causal = causal;
  a.frames = static_cast<int32_t>(geometry.cubes.frames);
  a.height = static_cast<int32_t>(geometry.cubes.height);
  a.width = static_cast<int32_t>(geometry.cubes.width);
  a.init_blocks = static_cast<int32_t>(forced.init);
  a.local_radius = static_cast<int32_t>(forced.radius);
  Tensor keys, apart, norm;
  if (config.strategy != "top_n") {
    a.strategy = config.strategy == "dart" ? kernels::SelectStrategy::kDart
                                           : kernels::SelectStrategy::kMaxMin;
    a.pool_factor = static_cast<int32_t>(config.pool_factor);
    a.num_pivots = static_cast<int32_t>(config.num_pivots);
    a.pivot_by_norm = config.pivot == "key_norm";
    a.alpha = config.alpha;
    keys = Windows(input.raw.detach(), tables.block_windows).mean().to(torch::kFloat).contiguous();
    apart = floats({a.B, a.G, a.W, a.W});
    norm = floats({a.B, a.G, a.W});
    a.keys = keys.data_ptr<float>();
    a.apart = apart.data_ptr<float>();
    a.norm = norm.data_ptr<float>();
  }
  const Tensor lists =
      torch::empty({a.B, a.G, a.R, std::min(a.n, a.W)}, q.options().dtype(torch::kInt));
  a.lists = lists.data_ptr<int32_t>();
  const cudaError_t status = kernels::select_blocks_gpu(a, c10::cuda::getCurrentCUDAStream());
  if (status == cudaErrorInvalidValue) {
    log_fall_back(
        "selection", path,
        "expected heads of up to 128 channels, a multiple of 16 bytes, and scores of a row "
        "that fit shared memory, got " +
            std::to_string(a.D) + " channels and " + std::to_string(a.W) + " blocks");
    return {};
  }
  SIGMA_CHECK(kDevice, status == cudaSuccess, "selection: {}", cudaGetErrorString(status));
  return lists;
}
#else
Tensor select_blocks_gpu(const SelectionConfig&, const BlockGeometry&, const SelectionTables&,
                         const SelectionInput&) {
  return {};
}
#endif

}  // namespace sigma
