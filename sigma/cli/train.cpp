#include "sigma/base/error.h"
#include "sigma/base/progress.h"
#include "sigma/cli/cli.h"
#include "sigma/cli/output.h"
#include "sigma/cli/sample_grid.h"
#include "sigma/io/files.h"
#include "sigma/train/trainer.h"

namespace sigma {
namespace {

CommandResult dry_run(const RunConfig& config, const std::filesystem::path& run) {
  const TrainEstimate e = estimate(config);
  std::vector<std::string> files;
  for (const char* name : {"config.toml", "run.json", "log.jsonl", "lock", "checkpoints", "events"})
    files.push_back((run / name).string());
  if (config.task == "generator") files.push_back((run / "samples").string());
  if (config.task == "generator" && !config.generator.tokenizer.empty())
    files.push_back((run / "tokenizer").string());
  if (!e.latents_to_write.empty()) files.push_back(e.latents_to_write.string());
  const auto parent = run.has_parent_path() ? run.parent_path() : std::filesystem::path(".");
  const uint64_t free =
      free_bytes(std::filesystem::exists(parent) ? parent : std::filesystem::path("."));
  const Json more = {{"run", run.string()},
                     {"parameters", e.parameters},
                     {"steps", e.steps},
                     {"flops_per_image", e.flops_per_image},
                     {"memory_weights", e.memory_weights},
                     {"checkpoint_bytes", e.checkpoint_bytes},
                     {"disk_bytes", e.disk_bytes},
                     {"disk_free", free},
                     {"data_count", e.data_count},
                     {"data", e.data_description}};
  std::string table = text_table(
      {{"run", run.string() + " (nothing was written)"},
       {"data", fmt::format("{} ({} samples)", e.data_description, e.data_count)},
       {"parameters", count_text(static_cast<double>(e.parameters))},
       {"steps", fmt::format("{} of {} images", e.steps, config.train.batch)},
       {"operations",
        fmt::format("{}FLOP an image and training step", count_text(e.flops_per_image))},
       {"memory",
        fmt::format("{} for weights, gradients, moments and average (activations come on top)",
                    bytes_text(static_cast<double>(e.memory_weights)))},
       {"disk", fmt::format("{} a checkpoint, {} at most; {} free",
                            bytes_text(static_cast<double>(e.checkpoint_bytes)),
                            bytes_text(static_cast<double>(e.disk_bytes)),
                            bytes_text(static_cast<double>(free)))}});
  table.pop_back();  // planned() ends the line
  return planned(files, table, more);
}

}  // namespace

CommandResult run_train(const TrainCommand& command, const GlobalOptions& global) {
  RunConfig config = load_run_config(command.recipe, command.set);
  if (global.device != "auto") config.train.device = global.device;
  const std::filesystem::path run =
      command.run.empty()
          ? std::filesystem::path("runs") / std::filesystem::path(command.recipe).stem()
          : std::filesystem::path(command.run);
  if (global.dry_run) return dry_run(config, run);
  install_signal_handlers();
  TrainOptions options{.run = run,
                       .argv = command.argv,
                       .quiet = global.quiet,
                       .check_hashes = command.verify == "hash"};
  options.picture = write_sample_grid;
  // Lines of the log before the result.
  if (global.json) options.on_log = [](const std::string& line) { write_stdout(line + "\n"); };
  const TrainResult r = train(config, options);
  CommandResult out;
  out.result = {{"run", run.string()},
                {"step", r.step},
                {"images_seen", r.images_seen},
                {"skipped", r.skipped},
                {"loss", r.loss},
                {"seconds", r.seconds},
                {"images_per_s", r.images_per_second},
                {"done", r.signal == 0},
                {"already_done", r.already_done},
                {"checkpoint", r.checkpoint.string()}};
  if (r.already_done) {
    out.text =
        fmt::format("{} is done: {} images seen. Nothing to do.\n", run.string(), r.images_seen);
  } else if (r.signal != 0) {
    out.text =
        fmt::format("stopped by signal {} after step {}; saved {}. The same command goes on.\n",
                    r.signal, r.step, r.checkpoint.string());
    out.exit_code = 128 + r.signal;
  } else {
    out.text = fmt::format("{}: {} images in {} ({:.0f} images/s); saved {}\n", run.string(),
                           r.images_seen, duration_text(r.seconds), r.images_per_second,
                           r.checkpoint.string());
  }
  return out;
}

}  // namespace sigma
