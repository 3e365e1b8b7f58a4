#include "sigma/train/open_run.h"

#include "sigma/base/error.h"
#include "sigma/train/optimizer.h"
#include "sigma/train/run.h"

namespace sigma {

std::string weights_stem(const std::string& ema) { return ema == "none" ? "model" : "ema-" + ema; }

std::string OpenRun::id() const { return checkpoint.manifest.at("run_id").get<std::string>(); }

OpenRun open_run(std::filesystem::path folder, RunConfig config, Checkpoint checkpoint,
                 const std::string& ema, const std::string& device) {
  if (device != "auto") config.train.device = device;
  else if (config.train.device == "cuda") config.train.device = "auto";
  resolve(config);
  if (config.train.device == "cpu") config.train.compute_dtype = "float32";
  const std::string stem = weights_stem(ema);
  SIGMA_CHECK(kUsage, checkpoint.has(stem), "--ema {}: expected main or none ({})", ema,
              checkpoint.folder.string());
  const torch::Device on = device_of(config.train);
  return {.folder = std::move(folder),
          .config = std::move(config),
          .checkpoint = std::move(checkpoint),
          .stem = stem,
          .device = on};
}

OpenRun open_run(const std::string& name, const std::string& task, const std::string& ema,
                 const std::string& device, bool finished) {
  const std::filesystem::path folder = find_run(name);
  RunConfig config = load_config_toml(folder / "config.toml");
  SIGMA_CHECK(kUsage, config.task == task, "{}: expected a {} run, got a {}", folder.string(), task,
              config.task);
  return open_run(folder, std::move(config),
                  finished ? finished_checkpoint(folder) : newest_checkpoint(folder), ema, device);
}

}  // namespace sigma
