// A stage starts from another run's weights and leaves what it does not train bit by bit alone.
#include "sigma/train/stage.h"

#include <gtest/gtest.h>

#include "sigma/train/trainer.h"
#include "tests/cli/program.h"
#include "tests/testing/errors.h"

namespace sigma {
namespace {

class Stage : public ::testing::Test {
 protected:
  Stage() : p_("stage") { p_.write_data(); }

  TrainResult run(const std::string& name, std::vector<std::string> set) const {
    const std::string recipe = p_.path(name + ".toml");
    std::ofstream(recipe) << R"(task = "tokenizer"
[data]
kind = "idx"
[tokenizer]
patch_size = 4
bottleneck = { kind = "vq", dim = 4, codes = 8, norm = "l2", restart = "threshold", restart_after = 1 }
mask = { policy = "replace" }
hog = { weight = 1, hidden_size = 16, num_heads = 2 }
encoder = { queries = 3, trunk = { hidden_size = 16, depth = 1, num_heads = 2 } }
decoder = { trunk = { hidden_size = 16, depth = 1, num_heads = 2 } }
latent_norm = { images = 100 }
[train]
images = 96
batch = 8
ema = { decay = 0.5 }
)";
    set.push_back("data.images=" + p_.path("images.idx"));
    set.push_back("data.labels=" + p_.path("labels.idx"));
    return train(load_run_config(recipe, set), {.run = p_.path(name), .quiet = true});
  }

  Program p_;
};

TEST_F(Stage, WhatIsFrozenKeepsItsBits) {
  const SafetensorsFile first(run("first", {}).checkpoint / "ema-main.safetensors");
  const std::vector<std::string> second = {"train.start_from=" + p_.path("first"),
                                           "train.only=decoder", "tokenizer.hog.weight=0",
                                           "train.seed=1"};
  for (const char* file : {"model.safetensors", "ema-main.safetensors"}) {
    const SafetensorsFile after(run("second", second).checkpoint / file);
    bool decoder_moved = false;
    for (const auto& entry : after.entries()) {
      const bool same = torch::equal(after.load(entry.name), first.load(entry.name));
      if (entry.name.starts_with("decoder.")) decoder_moved = decoder_moved || !same;
      else EXPECT_TRUE(same) << entry.name;
      EXPECT_FALSE(entry.name.starts_with("hog.")) << entry.name;
    }
    EXPECT_TRUE(decoder_moved);
  }
}

TEST_F(Stage, PartsThatDoNotExistAreNamed) {
  run("first", {});
  const auto refused = [&](const std::vector<std::string>& set, ErrorKind kind,
                           const std::string& part) {
    testing::expect_contains(testing::error_of(kind, [&] { run("other", set); }), part);
  };
  const std::string start = "train.start_from=" + p_.path("first");
  refused({start, "train.only=decodr"}, ErrorKind::kUsage, "train.only: expected names of parts");
  refused({start, "tokenizer.encoder.queries=4"}, ErrorKind::kCheckpoint, "encoder.queries");
  refused({"train.start_from=" + p_.path("nowhere")}, ErrorKind::kUsage, "nowhere");
}

}  // namespace
}  // namespace sigma
