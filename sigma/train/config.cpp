#include "sigma/train/config.h"

#include <torch/cuda.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

#include "sigma/base/error.h"
#include "sigma/io/files.h"

extern char** environ;

namespace sigma {

void ClassifierConfig::visit(ConfigVisitor& v) {
  v.field("num_classes", num_classes, in(2, 100000), "labels");
}

void OptimizerConfig::visit(ConfigVisitor& v) {
  v.choice("kind", kind, {"adamw"}, "optimizer");
  v.field("lr", lr, above(0, 1), "learning rate");
  v.field("beta1", beta1, below(0, 1), "decay of the first moment");
  v.field("beta2", beta2, below(0, 1), "decay of the second moment");
  v.field("eps", eps, in(0, 1), "added to the root of the second moment");
  v.field("weight_decay", weight_decay, in(0, 1), "decoupled weight decay");
  v.field("grad_clip", grad_clip, in(0, 1e6), "largest norm of the gradient; 0 = off");
}

void ScheduleConfig::visit(ConfigVisitor& v) {
  v.choice("kind", kind, {"constant", "cosine"}, "course of the learning rate");
  v.field("warmup_steps", warmup_steps, in(0, 1e9), "steps of linear rise from 0");
  if (v.when(kind, "cosine")) {
    v.field("decay_from", decay_from, below(0, 1), "share of the run after which the rate falls");
    v.field("final", final, in(0, 1), "share of lr at the end");
  }
}

void EmaConfig::visit(ConfigVisitor& v) {
  v.choice("kind", kind, {"constant"}, "average of the weights");
  v.field("decay", decay, below(0, 1), "weight of the past at each update");
  v.field("warmup", warmup, "min(decay, (1+i)/(10+i)) at update i");
}

void TrainConfig::visit(ConfigVisitor& v) {
  v.field("seed", seed, in(0, 9.0e15), "of initial weights, data order, noise and times");
  v.field("images", images, in(1, 1e13), "images that end the run");
  v.field("batch", batch, in(1, 1 << 20), "images a step");
  v.field("micro_batch", micro_batch, in(0, 1 << 20), "images a pass; divides batch; 0 = batch");
  v.choice("device", device, {"auto", "cpu", "cuda"}, "where to compute", Role::kRuntime);
  v.choice("compute_dtype", compute_dtype, {"auto", "float32", "bfloat16"},
           "of matrix products; auto = bfloat16 on a GPU, else float32");
  v.choice("on_nonfinite", on_nonfinite, {"stop", "skip"},
           "what a NaN or Inf in the loss or gradient does");
  if (v.when(on_nonfinite, "skip"))
    v.field("max_skips", max_skips, in(0, 1e9),
            "skipped steps in a row that are allowed; one more ends the run");
  v.field("start_from", start_from, "run whose weights are the start; empty = initial values");
  v.field("only", only, "names of the parts that are trained, \"decoder hog\"; empty = all");
  v.table("optimizer", optimizer, "optimizer");
  v.table("schedule", schedule, "learning rate");
  v.table("ema", ema, "average of the weights that samples and metrics use");
}

void CheckpointConfig::visit(ConfigVisitor& v) {
  v.field("every", every, in(1, 1e13),
          "images between checkpoints; one more at the end and at signals");
  v.field("keep_last", keep_last, in(1, 1000), "newest checkpoints kept");
  v.field("keep_every", keep_every, in(0, 1e13),
          "checkpoints at multiples of this many images are kept; 0 = off");
}

void LogConfig::visit(ConfigVisitor& v) {
  v.field("every", every, in(1, 1e9), "steps a line of log.jsonl");
  v.field("interval", interval, in(0, 1e6),
          "seconds between progress lines where there is no terminal");
}

void RunConfig::visit(ConfigVisitor& v) {
  v.choice("task", task, {"generator", "tokenizer", "classifier"}, "what is trained");
  v.table("data", data, "the images");
  if (v.when(task, "generator")) v.table("generator", generator, "network, objective and sampler");
  if (v.when(task, "tokenizer")) v.table("tokenizer", tokenizer, "images to latents and back");
  if (v.when(task, "classifier")) v.table("classifier", classifier, "a feature net for metrics");
  v.table("train", train, "the training loop");
  v.table("checkpoint", checkpoint, "when to save", Role::kRuntime);
  v.table("log", log, "what to log", Role::kRuntime);
  v.table("metrics", metrics, "how `eval` measures", Role::kRuntime);
}

RunConfig load_run_config(const std::filesystem::path& recipe,
                          const std::vector<std::string>& assignments) {
  RunConfig config;
  Json tree = load_recipe(recipe);
  merge_environment(tree, visit_of(config), environ);
  for (const std::string& assignment : assignments) set_key(tree, assignment);
  read_config(visit_of(config), tree, recipe.string());
  const TrainConfig& train = config.train;
  SIGMA_CHECK(kUsage, train.batch % train.micro() == 0,
              "train.micro_batch: expected a divisor of train.batch = {}, got {}", train.batch,
              train.micro_batch);
  return config;
}

RunConfig load_config_toml(const std::filesystem::path& file) {
  RunConfig config;
  read_config(visit_of(config), parse_toml(read_file(file), file.string()), file.string());
  return config;
}

void resolve(RunConfig& config) {
  TrainConfig& train = config.train;
  if (train.device == "auto") train.device = torch::cuda::is_available() ? "cuda" : "cpu";
  if (train.device == "cuda" && !torch::cuda::is_available()) {
    throw Error(ErrorKind::kDevice,
                "device cuda: expected an NVIDIA GPU and a build with CUDA, found none",
                "use --device cpu, or build with SIGMA_CUDA=1 ./test.sh build");
  }
  if (train.compute_dtype == "auto")
    train.compute_dtype = train.device == "cuda" ? "bfloat16" : "float32";
}

torch::Device device_of(const TrainConfig& config) {
  return config.device == "cuda" ? torch::Device(torch::kCUDA, 0) : torch::Device(torch::kCPU);
}

torch::ScalarType compute_dtype_of(const TrainConfig& config) {
  return config.compute_dtype == "bfloat16" ? torch::kBFloat16 : torch::kFloat;
}

}  // namespace sigma
