// 200 steps straight and 200 steps with 5 stops give the same bytes.
#include "sigma/train/run_log.h"
#include "sigma/train/trainer.h"
#include "tests/cli/program.h"
#include "tests/testing/event_reader.h"

namespace sigma {
namespace {

std::map<std::string, std::string> hashes(const fs::path& checkpoint) {
  std::map<std::string, std::string> out;
  for (const auto& entry : fs::directory_iterator(checkpoint)) {
    if (entry.path().extension() == ".safetensors") {
      out[entry.path().filename()] = sha256_file(entry.path());
    }
  }
  return out;
}

TEST(Resume, FiveStopsChangeNoByte) {
  const Program p("resume");
  p.write_data();
  p.write_recipe();
  // Experts too: their routing and its bias must come back exactly. Two micro-batches a step.
  const RunConfig config = load_run_config(
      p.path("tiny.toml"),
      {"data.images=" + p.path("images.idx"), "data.labels=" + p.path("labels.idx"),
       "train.micro_batch=4", "checkpoint.every=1M", "generator.normalize=standardize",
       "generator.trunk.mlp={kind=\"moe\", num_experts=3, num_chosen=2, "
       "balance={bias_rate=1e-2}}",
       "data.threads=2"});
  ASSERT_EQ(config.train.steps(), 200);
  const TrainResult straight = train(config, {.run = p.path("straight"), .quiet = true});
  EXPECT_EQ(straight.step, 200);
  for (const int64_t stop : {1, 37, 90, 91, 163, 0}) {
    const TrainResult part =
        train(config, {.run = p.path("stopped"), .quiet = true, .stop_after_step = stop});
    EXPECT_EQ(part.step, stop == 0 ? 200 : stop);
  }
  const auto expected = hashes(p.checkpoints("straight").back());
  EXPECT_EQ(expected.size(), 3u);
  EXPECT_EQ(hashes(p.checkpoints("stopped").back()), expected);
  EXPECT_TRUE(train(config, {.run = p.path("stopped"), .quiet = true}).already_done);

  // One curve, in the log and for TensorBoard, each step once.
  std::vector<int64_t> logged, shown;
  for (const LogStep& step : read_run_log(p.path("stopped")).steps)
    logged.push_back(step.cost.step);
  for (const auto& event : testing::read_event_folder(p.path("stopped/events")).events) {
    for (const auto& value : event.values) {
      if (value.tag == "loss") shown.push_back(event.step);
    }
  }
  EXPECT_EQ(shown.size(), 20u);
  EXPECT_EQ(shown, logged);
}

}  // namespace
}  // namespace sigma
