#include "sigma/train/trainer.h"

#include <torch/cuda.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <chrono>
#include <cmath>

#include "sigma/base/error.h"
#include "sigma/base/memory.h"
#include "sigma/base/progress.h"
#include "sigma/base/version.h"
#include "sigma/data/loader.h"
#include "sigma/train/averages.h"
#include "sigma/train/deterministic.h"
#include "sigma/train/ema.h"
#include "sigma/train/optimizer.h"
#include "sigma/train/out_of_memory.h"
#include "sigma/train/run.h"
#include "sigma/train/signals.h"
#include "sigma/train/stage.h"
#include "sigma/train/step_guard.h"
#include "sigma/train/task.h"
#include "sigma/train/training_picture.h"

namespace sigma {
namespace {

using torch::Tensor;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class Trainer {
 public:
  Trainer(RunConfig& config, const TrainOptions& options)
      : config_(config),
        options_(options),
        run_(options.run, config),
        progress_(config.log.interval, options.quiet) {
    resolve(config_);
    use_deterministic_kernels();
    run_.on_log(options.on_log);
  }

  TrainResult train() {
    run_.checkpoints().clean();
    Checkpoint checkpoint;
    const bool resuming =
        run_.existed() && run_.checkpoints().latest(checkpoint, options_.check_hashes);
    if (resuming && checkpoint.step() >= total_) {
      return {.step = checkpoint.step(),
              .images_seen = checkpoint.images_seen(),
              .already_done = true,
              .checkpoint = checkpoint.folder};
    }
    bundle_ = make_task(config_);
    const int64_t micro = config_.train.micro();
    SIGMA_CHECK(kUsage, micro % bundle_.task->group_size() == 0,
                "train.micro_batch: expected a multiple of group_size = {}, got {}",
                bundle_.task->group_size(), micro);
    const std::string hash = data_hash(*bundle_.data);
    SIGMA_CHECK(kData, run_.data_sha256().empty() || run_.data_sha256() == hash,
                "data: expected the run's data (SHA-256 {}), got {}", run_.data_sha256(), hash);
    if (!resuming) load_start(bundle_.task->module(), config_.train);
    const NamedTensors trained = trained_parameters(bundle_.task->module(), config_.train);
    run_.commit(config_, hash, options_.argv);
    bundle_.task->write_assets(run_.folder());
    if (const int64_t bad = bundle_.data->info().skipped; bad > 0)
      run_.warn(fmt::format("data: {} bad files are skipped; sigma data check lists them", bad));

    AdamW optimizer(trained, config_.train.optimizer);
    Ema ema(bundle_.task->module(), config_.train.ema);
    optimizer_ = &optimizer;
    ema_ = &ema;
    int64_t step = 0;
    if (resuming) {
      load_tensors(named_state(bundle_.task->module()), checkpoint.open("model"));
      ema.load(checkpoint.open("ema-main"));
      optimizer.load(checkpoint.open("optimizer"));
      step = checkpoint.step();
    }
    Json line = {{"step", step},
                 {"images_seen", step * config_.train.batch},
                 {"version", version()},
                 {"git", commit_hash()},
                 {"device", config_.train.device},
                 {"threads", at::get_num_threads()},
                 {"parameters", count_parameters(bundle_.task->module())},
                 {"flops_per_image", bundle_.task->flops()},
                 {"data",
                  {{"description", bundle_.data->info().description},
                   {"count", bundle_.data->size()},
                   {"shape", bundle_.data->info().sample_shape}}}};
    if (!resuming) line["images_sha256"] = images_hash(hash);
    run_.log(resuming ? "resume" : "start", std::move(line));
    try {
      return loop(step);
    } catch (const std::exception& error) {
      if (!is_out_of_memory(error)) throw;
      progress_.end_line();
      throw out_of_memory(error, config_.train, bundle_.task->group_size(), run_);
    }
  }

 private:
  // Of the images under the padding or the tokenizer of a recipe: runs on the same images can be
  // compared.
  std::string images_hash(const std::string& hash) const {
    if (config_.data.pad == 0 && !bundle_.data->info().latents) return hash;
    DataConfig plain = config_.data;
    plain.pad = 0;
    return data_hash(*open_dataset(plain));
  }

  TrainResult loop(int64_t step) {
    const int64_t batch = config_.train.batch;
    TrainResult result{.step = step, .images_seen = step * batch};
    Loader loader(*bundle_.data, batch, static_cast<uint64_t>(config_.train.seed), step + 1,
                  config_.data.threads, config_.data.prefetch);
    StepGuard guard(config_.train, bundle_.task->module(), run_, progress_);
    const auto start = Clock::now();
    const int64_t first_step = step;
    auto interval_start = start;
    int64_t interval_step = step;
    while (step < total_) {
      const RawBatch data = loader.next();
      optimizer_->zero_grad();
      guard.begin();
      const Tensor loss = accumulate(data, step + 1);
      const Tensor norm = optimizer_->grad_norm();
      // The flag of the step before: read only now, so that a GPU is not kept waiting.
      guard.check(step);
      const Tensor found_inf = guard.record(loss, norm);
      for (const auto& [name, rows] : bundle_.task->replaced_rows())
        optimizer_->forget(name, rows & (found_inf == 0));
      optimizer_->clip(norm);
      const double lr =
          learning_rate(config_.train.schedule, config_.train.optimizer.lr, step + 1, total_);
      optimizer_->step(lr, found_inf);
      ema_->update(step, found_inf);
      averages_.add("loss", loss);
      averages_.add("grad_norm", norm);
      averages_.count(found_inf);
      guard.end(found_inf, ++step);
      result.step = step;
      result.images_seen = step * batch;
      result.skipped = guard.skipped();

      if (step % config_.log.every == 0 || step == total_) {
        guard.check(step);
        const auto means = averages_.take();
        const double rate =
            static_cast<double>((step - interval_step) * batch) / seconds_since(interval_start);
        interval_start = Clock::now();
        interval_step = step;
        result.loss = means.at("loss");
        log_step(result, means, lr, rate);
      }
      progress_.show(progress_line(result, seconds_since(start), step - first_step));

      const int signal = pending_stop_signal();
      const bool stop = signal != 0 || step == options_.stop_after_step;
      const bool due = result.images_seen / config_.checkpoint.every !=
                       (result.images_seen - batch) / config_.checkpoint.every;
      if (step == total_ || stop || due || take_save_request()) {
        guard.check(step);
        if (step == total_) finish();
        result.checkpoint = save(result);
        if (signal == 0) add_picture(options_.picture, result.checkpoint, step, run_, progress_);
      }
      if (stop && step < total_) {
        result.signal = signal;
        break;
      }
    }
    result.seconds = seconds_since(start);
    result.images_per_second =
        static_cast<double>((step - first_step) * batch) / std::max(result.seconds, 1e-9);
    progress_.show(progress_line(result, result.seconds, step - first_step), /*force=*/true);
    progress_.end_line();
    run_.log("end", {{"step", step},
                     {"images_seen", result.images_seen},
                     {"seconds", result.seconds},
                     {"signal", result.signal}});
    return result;
  }

  // Forward and backward over the micro-batches; returns the batch's loss.
  Tensor accumulate(const RawBatch& data, int64_t step) {
    const int64_t batch = config_.train.batch;
    const int64_t micro = config_.train.micro();
    const double share = static_cast<double>(micro) / static_cast<double>(batch);
    Tensor total;
    for (int64_t first = 0; first < batch; first += micro) {
      const Context context{
          .training = true,
          .record = true,
          .dtype = compute_dtype_of(config_.train),
          .rng = {.seed = static_cast<uint64_t>(config_.train.seed),
                  .step = static_cast<uint64_t>(step)},
          .samples = torch::arange(first, first + micro, torch::kInt64),
          .progress = static_cast<double>(step - 1) / static_cast<double>(total_)};
      const RawBatch part{.data = data.data.narrow(0, first, micro),
                          .labels = data.labels.narrow(0, first, micro),
                          .positions = data.positions.narrow(0, first, micro)};
      const Output out = bundle_.task->step(part, context);
      Tensor loss;
      for (const auto& [name, value] : out.losses) {
        loss = loss.defined() ? loss + value : value;
        averages_.add("losses." + name, value * share);
      }
      for (const auto& [name, value] : out.statistics)
        averages_.add("statistics." + name, value * share);
      loss = loss * share;
      loss.backward();
      total = total.defined() ? total + loss.detach() : loss.detach();
    }
    return total;
  }

  void finish() {
    ema_->swap();
    bundle_.task->finish();
    ema_->swap();
  }

  std::filesystem::path save(const TrainResult& at) {
    const auto started = Clock::now();
    const Metadata metadata = {{"format", "pt"},
                               {"image_shape", Json(bundle_.image_shape).dump()},
                               {"task", config_.task}};
    CheckpointContents contents{
        .step = at.step, .images_seen = at.images_seen, .run_id = run_.id()};
    contents.files = {{"model", named_state(bundle_.task->module()), metadata},
                      {"ema-main", ema_->state(), metadata},
                      {"optimizer", optimizer_->state(), {{"format", "pt"}}}};
    contents.state = {{"step", at.step}, {"images_seen", at.images_seen}};
    contents.config_toml = to_toml(write_config(visit_of(config_)));
    contents.manifest_extra = {{"config_sha256", config_hash(visit_of(config_))},
                               {"data_sha256", run_.data_sha256()},
                               {"version", version()},
                               {"git", commit_hash()}};
    const auto folder = run_.checkpoints().save(
        contents,
        {.keep_last = config_.checkpoint.keep_last, .keep_every = config_.checkpoint.keep_every});
    run_.log(
        "checkpoint",
        {{"step", at.step}, {"images_seen", at.images_seen}, {"seconds", seconds_since(started)}});
    return folder;
  }

  void log_step(const TrainResult& at, const std::map<std::string, double>& means, double lr,
                double rate) {
    Json line = {{"step", at.step}, {"images_seen", at.images_seen}};
    for (const auto& [name, value] : means) {
      const size_t dot = name.find('.');
      if (dot == std::string::npos) line[name] = value;
      else line[name.substr(0, dot)][name.substr(dot + 1)] = value;
    }
    line["lr"] = lr;
    line["images_per_s"] = rate;
    run_.log("step", std::move(line));
  }

  std::string progress_line(const TrainResult& at, double seconds, int64_t done) const {
    const double rate = static_cast<double>(done * config_.train.batch) / std::max(seconds, 1e-9);
    const double left =
        static_cast<double>((total_ - at.step) * config_.train.batch) / std::max(rate, 1e-9);
    const std::string loss = at.loss != 0 ? fmt::format("loss {:.4g}  ", at.loss) : "";
    return fmt::format("step {}/{}  {}{:.0f} images/s  {} left", at.step, total_, loss, rate,
                       duration_text(left));
  }

  RunConfig& config_;
  const TrainOptions& options_;
  Run run_;
  Progress progress_;
  const int64_t total_ = config_.train.steps();
  TaskBundle bundle_;
  AdamW* optimizer_ = nullptr;
  Ema* ema_ = nullptr;
  Averages averages_;
};

}  // namespace

TrainResult train(RunConfig config, const TrainOptions& options) {
  Trainer trainer(config, options);
  return trainer.train();
}

}  // namespace sigma
