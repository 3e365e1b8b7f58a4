#include "sigma/attention/path.h"

#include <c10/util/Exception.h>
#include <torch/types.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <mutex>
#include <set>

#include "sigma/base/error.h"
#ifdef SIGMA_CUDA
#include <ATen/cuda/CUDAContext.h>
#endif

namespace sigma {
namespace {

const std::array<std::string, 3> kNames = {"reference", "portable", "hopper"};

const std::string& name_of(AttentionPath path) { return kNames[static_cast<size_t>(path)]; }

// The path that SIGMA_ATTENTION names, or `otherwise`.
AttentionPath asked_path(AttentionPath otherwise) {
  const char* asked = std::getenv("SIGMA_ATTENTION");
  if (!asked || !*asked) return otherwise;
  const auto found = std::find(kNames.begin(), kNames.end(), asked);
  SIGMA_CHECK(kUsage, found != kNames.end(),
              "SIGMA_ATTENTION: expected reference, portable or hopper, got {}", asked);
  return static_cast<AttentionPath>(found - kNames.begin());
}

}  // namespace

void log_fall_back(const std::string& op, AttentionPath from, const std::string& why) {
  static std::mutex mutex;
  static std::set<std::string> logged;
  const std::string line = op + " does not run as " + name_of(from) + ": " + why;
  const std::lock_guard lock(mutex);
  if (logged.insert(line).second) TORCH_WARN(line);
}

AttentionPath attention_path(const std::string& op, AttentionPath fastest,
                             const std::function<std::string(AttentionPath)>& refused) {
  const AttentionPath asked = asked_path(fastest);
  if (asked > fastest)
    log_fall_back(op, asked,
                  "it has no such kernels for this GPU, the fastest are " + name_of(fastest));
  for (const auto path : {AttentionPath::kHopper, AttentionPath::kPortable}) {
    if (path > std::min(asked, fastest)) continue;
    const std::string why = refused(path);
    if (why.empty()) return path;
    log_fall_back(op, path, why);
  }
  return AttentionPath::kReference;
}

AttentionPath device_path(const torch::Tensor& x) {
#ifdef SIGMA_CUDA
  if (x.is_cuda()) {
    const int major = at::cuda::getDeviceProperties(x.get_device())->major;
    if (major == 9) return AttentionPath::kHopper;
    if (major >= 8) return AttentionPath::kPortable;
  }
#endif
  return AttentionPath::kReference;
}

}  // namespace sigma
