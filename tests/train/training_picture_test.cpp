// The picture of a checkpoint only illustrates: what goes wrong with it is a warning.
#include "sigma/train/training_picture.h"

#include <new>

#include "sigma/train/run_log.h"
#include "tests/cli/program.h"
#include "tests/testing/errors.h"

namespace sigma {
namespace {

TEST(TrainingPicture, OnlyADiskErrorEndsTheRun) {
  const Program p("picture");
  p.write_data();
  p.write_recipe();
  const RunConfig config =
      load_run_config(p.path("tiny.toml"),
                      {"data.images=" + p.path("images.idx"), "data.labels=" + p.path("labels.idx"),
                       "train.images=24", "checkpoint.every=8"});
  int64_t calls = 0;
  const PictureMaker none = [&](const fs::path& checkpoint) -> fs::path {
    EXPECT_TRUE(fs::exists(checkpoint / "manifest.json"));
    switch (++calls) {
      case 1: fail(ErrorKind::kNonFinite, "samples are not finite");
      case 2: fail(ErrorKind::kUsage, "a sampler that does not fit");
      default: throw std::bad_alloc();
    }
  };
  const TrainResult r = train(config, {.run = p.path("warned"), .quiet = true, .picture = none});
  EXPECT_EQ(r.step, 3);
  EXPECT_EQ(calls, 3);
  std::string warnings;
  for (const Json& event : read_run_log(p.path("warned")).events) {
    if (event.at("event") == "warning") warnings += event.at("message").get<std::string>() + "\n";
  }
  EXPECT_CONTAINS(warnings, "step 1: no picture: samples are not finite\n");
  EXPECT_CONTAINS(warnings, "step 2: no picture: a sampler that does not fit\n");
  EXPECT_CONTAINS(warnings, "step 3: no picture: out of memory: ");

  const PictureMaker full = [](const fs::path&) -> fs::path {
    fail(ErrorKind::kIo, "the disk is full");
  };
  testing::expect_error(ErrorKind::kIo, "the disk is full", [&] {
    train(config, {.run = p.path("ended"), .quiet = true, .picture = full});
  });
  EXPECT_EQ(p.checkpoints("ended").size(), 1u);
}

}  // namespace
}  // namespace sigma
