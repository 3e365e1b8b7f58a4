#include <torch/cuda.h>
#include <torch/utils.h>
#include <torch/version.h>

#include "sigma/base/error.h"
#include "sigma/base/version.h"
#include "sigma/cli/cli.h"
#include "sigma/io/safetensors.h"
#include "sigma/train/run.h"

namespace sigma {
namespace {

void show_file(const std::filesystem::path& path, CommandResult& out) {
  const SafetensorsFile file(path);
  Json tensors = Json::array();
  std::vector<std::vector<std::string>> rows = {{"tensor", "dtype", "shape"}};
  for (const SafetensorsEntry& entry : file.entries()) {
    tensors.push_back({{"name", entry.name}, {"dtype", entry.dtype}, {"shape", entry.shape}});
    rows.push_back({entry.name, entry.dtype, fmt::format("[{}]", fmt::join(entry.shape, ","))});
  }
  out.result.push_back(
      {{"file", path.string()}, {"metadata", file.metadata()}, {"tensors", tensors}});
  out.text += fmt::format("{}: {} tensors, {}\n", path.string(), file.entries().size(),
                          bytes_text(static_cast<double>(std::filesystem::file_size(path))));
  for (const auto& [key, value] : file.metadata())
    out.text += fmt::format("  {} = {}\n", key, value);
  out.text += text_table(rows);
}

}  // namespace

CommandResult run_show(const std::string& what) {
  CommandResult out;
  out.result = Json::array();
  if (std::filesystem::is_regular_file(what)) {
    show_file(what, out);
    return out;
  }
  const std::filesystem::path run = find_run(what);
  const Checkpoint checkpoint = newest_checkpoint(run);
  out.text = fmt::format("{}: step {}, {} images seen, run {}\n", checkpoint.folder.string(),
                         checkpoint.step(), checkpoint.images_seen(),
                         checkpoint.manifest.at("run_id").get<std::string>());
  for (const char* stem : {"model", "ema-main"})
    show_file(checkpoint.folder / fmt::format("{}.safetensors", stem), out);
  return out;
}

CommandResult run_version() {
  const bool cuda = torch::cuda::is_available();
#ifdef SIGMA_CUDA
  const bool built = true;
#else
  const bool built = false;
#endif
  CommandResult out;
  out.result = {{"version", version()},
                {"git", commit_hash()},
                {"torch", TORCH_VERSION},
                {"compiler", __VERSION__},
                {"cuda_build", built},
                {"cuda_devices", cuda ? static_cast<int64_t>(torch::cuda::device_count()) : 0},
                {"cpu", at::get_cpu_capability()},
                {"threads", at::get_num_threads()}};
  out.text = fmt::format(
      "sigma {} ({})\ntorch {}, {}\nCPU {}, {} threads\nCUDA: {}, {} devices\n", version(),
      commit_hash(), TORCH_VERSION, __VERSION__, at::get_cpu_capability(), at::get_num_threads(),
      built ? "built in" : "not built in", out.result["cuda_devices"].get<int64_t>());
  return out;
}

}  // namespace sigma
