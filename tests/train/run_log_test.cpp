#include "sigma/train/run_log.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/testing/errors.h"
#include "tests/testing/scratch.h"

namespace sigma {
namespace {

TEST(RunLog, AResumeForgetsTheStepsAfterIt) {
  const Scratch folder;
  folder.write("log.jsonl", R"({"t":100,"event":"start","step":0,"flops_per_image":2}
{"t":110,"event":"step","step":10,"images_seen":80,"loss":4,"losses":{"imm":3}}
{"t":115,"event":"checkpoint","step":15,"images_seen":120}
{"t":120,"event":"step","step":20,"images_seen":160,"loss":3}
{"t":500,"event":"resume","step":15,"images_seen":120,"flops_per_image":2}
{"t":505,"event":"step","step":20,"images_seen":160,"loss":null,"nonfinite":["loss"]}
{"t":506,"event":"step","step":20,"images_seen":160,"loss":9}
{"t":510,"event":"checkpoint","step":25,"images_seen":200}
{"t":515,"event":"eval","step":25,"images_seen":200,"metrics":[]}
not json
[1]
{"t":520,"event":"step","step":-1}
{"t":515,"event":"step","step":30,"images_seen":240,"loss":1}
{"t":516,"ev)");
  const RunLog log = read_run_log(folder.path());
  ASSERT_EQ(log.steps.size(), 3u);
  EXPECT_EQ(log.broken, 5);
  EXPECT_EQ(log.steps[0].values.at("losses/imm"), 3);
  EXPECT_EQ(log.steps[0].cost.seconds, 10);
  EXPECT_TRUE(std::isnan(log.steps[1].values.at("loss")));
  EXPECT_EQ(log.steps[1].cost.seconds, 20);  // 15 to the checkpoint, 5 since the resume
  EXPECT_EQ(log.end().seconds, 30);
  EXPECT_EQ(log.end().flops, 480);
  EXPECT_EQ(log.names(), (std::vector<std::string>{"loss", "losses/imm"}));
  ASSERT_EQ(log.evaluations.size(), 1u);
  EXPECT_EQ(log.evaluations[0].cost.seconds, 25);
  EXPECT_EQ(log.events.size(), 4u);
  EXPECT_EQ(log.of_start("flops_per_image"), 2);
  EXPECT_TRUE(log.of_start("data").is_null());
  testing::expect_error(ErrorKind::kIo, "log.jsonl", [&] { read_run_log(folder.path("none")); });
}

}  // namespace
}  // namespace sigma
