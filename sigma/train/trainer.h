// The training loop: data, losses, optimizer, average, checkpoints, log, signals.
//
// A step takes train.batch images in micro-batches; the run ends after ceil(images / batch) steps.
// A step whose loss or gradient is not finite changes no weight, moment, average or statistic: it
// ends the run (kNonFinite), or is passed over (train.on_nonfinite = skip; more than
// train.max_skips of them in a row, since the start of the process, end the run).
//
// Not supported: more than one GPU, activation checkpointing.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "sigma/train/config.h"

namespace sigma {

/// Makes a picture of a saved checkpoint, given its folder, and returns the PNG file in the run,
/// which the log names and TensorBoard shows; empty: none.
using PictureMaker = std::function<std::filesystem::path(const std::filesystem::path&)>;

struct TrainOptions {
  std::filesystem::path run;
  std::vector<std::string> argv;  // recorded in run.json
  bool quiet = false;
  std::function<void(const std::string&)> on_log;  // sees each line of log.jsonl
  PictureMaker picture;         // not called for what a signal saves; only its kIo ends the run
  bool check_hashes = true;     // of the checkpoint to resume from; false: sizes only
  int64_t stop_after_step = 0;  // > 0: checkpoint and return there, as at a signal (tests)
};

struct TrainResult {
  int64_t step = 0;
  int64_t images_seen = 0;
  int64_t skipped = 0;  // steps passed over by this process
  double loss = 0;      // mean over the last logged interval
  double images_per_second = 0;
  double seconds = 0;
  bool already_done = false;
  int signal = 0;  // the signal that stopped the run; 0: none
  std::filesystem::path checkpoint;
};

/// Trains, or resumes, the run of `options`. The same configuration gives the same weights, bit for
/// bit, with any number of stops (same build, device model and thread count). Errors: see
/// sigma/base/error.h.
TrainResult train(RunConfig config, const TrainOptions& options);

struct TrainEstimate {
  int64_t parameters = 0;
  int64_t steps = 0;
  double flops_per_image = 0;  // of one training step
  int64_t memory_weights = 0;  // bytes: weights, gradients, moments, average
  int64_t checkpoint_bytes = 0;
  int64_t disk_bytes = 0;  // all checkpoints kept
  int64_t data_count = 0;
  std::string data_description;
  std::filesystem::path latents_to_write;  // of images that are not encoded yet; empty: none
};
/// What `train` would do; writes nothing.
TrainEstimate estimate(RunConfig config);

/// SIGINT, SIGTERM and SIGHUP ask the loop to finish its step, save and return; a second one ends
/// the program at once. SIGUSR1 asks for a checkpoint. SIGPIPE and SIGXFSZ are ignored.
void install_signal_handlers();

}  // namespace sigma
