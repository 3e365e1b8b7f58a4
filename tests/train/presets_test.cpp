// The presets in recipes/presets: every one is read over the quickstart and computes.
#include <gtest/gtest.h>
#include <torch/types.h>

#include "sigma/train/config.h"
#include "sigma/trunk/trunk.h"
#include "tests/testing/numbers.h"
#include "tests/testing/scratch.h"

namespace sigma {
namespace {

RunConfig over_quickstart(const std::string& preset) {
  const Scratch folder;
  const std::string recipes = SIGMA_SOURCE_DIR "/recipes/";
  return load_run_config(
      folder.write("recipe.toml",
                   fmt::format("extends = [\"{0}fashion/quickstart.toml\", \"{0}presets/{1}\"]\n",
                               recipes, preset)),
      {});
}

struct Expected {
  const char* preset;
  int64_t layers, experts, width;  // of a trunk of 4 blocks and 128 channels
};

TEST(Presets, MixturesOfExperts) {
  for (const Expected& e :
       {Expected{"deepseek_moe.toml", 3, 64, 88}, Expected{"deepseek_v2.toml", 3, 160, 38},
        Expected{"deepseek_v3.toml", 1, 256, 36}, Expected{"dit_moe.toml", 4, 8, 512},
        Expected{"ec_dit.toml", 2, 8, 512}}) {
    const TrunkConfig config = over_quickstart(e.preset).generator.network.trunk;
    ASSERT_EQ(config.mlp.kind, "moe") << e.preset;
    const Grid grid{.height = 4, .width = 4};
    Trunk trunk(config, grid, Conditioning::kNone);
    initialize(trunk, 1);
    int64_t layers = 0;
    for (const auto& item : trunk.named_modules("", /*include_self=*/false)) {
      const auto* moe = dynamic_cast<MixtureOfExperts*>(item.value().get());
      if (moe == nullptr) continue;
      ++layers;
      const auto w_out = moe->named_parameters()["w_out"];
      EXPECT_EQ(w_out.size(0), e.experts) << e.preset;
      EXPECT_EQ(w_out.size(2), e.width) << e.preset;
    }
    EXPECT_EQ(layers, e.layers) << e.preset;
    const torch::NoGradGuard no_grad;
    const torch::Tensor x = normal({2, 16, 128}, 1, torch::kFloat);
    EXPECT_TRUE(trunk.forward(x, {.grid = grid}, {}, {}).value.isfinite().all().item<bool>());
  }
}

}  // namespace
}  // namespace sigma
