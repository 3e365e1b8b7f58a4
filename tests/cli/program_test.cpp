// The program's good ways: train, resume, sample, eval, show, config.
#include "tests/cli/program.h"

#include "sigma/base/sha256.h"
#include "sigma/io/images.h"

namespace sigma {
namespace {

std::map<std::string, std::string> hashes(const fs::path& folder) {
  std::map<std::string, std::string> out;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".safetensors")
      out[entry.path().filename()] = sha256_file(entry.path());
  }
  return out;
}

class ProgramTest : public ::testing::Test {
 protected:
  ProgramTest() : p("program") {
    p.write_data();
    p.write_recipe();
  }
  Program p;
};

TEST_F(ProgramTest, TrainsRepeatsAndSamples) {
  ASSERT_EQ(p.run({"train", "tiny.toml"}).exit, 0);
  const auto before = hashes(p.checkpoints("runs/tiny").back());
  const Finished again = p.run({"train", "tiny.toml"});
  EXPECT_EQ(again.exit, 0);
  EXPECT_CONTAINS(again.out, "is done");
  EXPECT_EQ(hashes(p.checkpoints("runs/tiny").back()), before);

  // Image i of a seed is the same at any batch size and in any selection.
  ASSERT_EQ(p.run({"sample", "runs/tiny", "-o", "a/", "--count", "8", "--batch", "8"}).exit, 0);
  ASSERT_EQ(p.run({"sample", "runs/tiny", "-o", "b/", "--count", "8", "--batch", "3"}).exit, 0);
  for (int i = 0; i < 8; ++i) {
    const std::string name = fmt::format("{:06}.png", i);
    const auto a = decode_image(read_file(p.folder / "a" / name), name);
    const auto b = decode_image(read_file(p.folder / "b" / name), name);
    EXPECT_EQ(a.pixels, b.pixels) << name;
  }
  const std::string png = read_file(p.folder / "a/000003.png");
  const auto provenance = nlohmann::json::parse(read_provenance(png, "a"));
  EXPECT_EQ(provenance.at("index"), 3);
  EXPECT_EQ(provenance.at("label"), 1);
  EXPECT_EQ(provenance.at("checkpoint"), before.at("ema-main.safetensors"));
  const Image decoded = decode_image(png, "a");
  EXPECT_EQ(
      provenance.at("pixels"),
      sha256_hex({reinterpret_cast<const char*>(decoded.pixels.data()), decoded.pixels.size()}));
  const auto sidecar = nlohmann::json::parse(read_file(p.folder / "a/000003.png.json"));
  EXPECT_EQ(sidecar.at("file_sha256"), sha256_hex(png));

  // Several settings: a file each.
  ASSERT_EQ(p.run({"sample", "runs/tiny", "-o", "grid.png", "--steps", "1,2", "--guidance", "1,2",
                   "--labels", "0,2-3"})
                .exit,
            0);
  for (const char* name : {"grid-steps1-guidance1.png", "grid-steps2-guidance2.png"})
    EXPECT_TRUE(fs::exists(p.folder / name));
  EXPECT_EQ(p.run({"sample", "runs/tiny", "--labels", "4"}).exit, 2);
  EXPECT_CONTAINS(p.run({"sample", "runs/tiny", "--count", "1201"}).err, "-o DIR/ writes single");

  const Finished eval =
      p.run({"eval", "runs/tiny", "--metrics", "energy_pixels", "--count", "32", "--json"});
  ASSERT_EQ(eval.exit, 0) << eval.err;
  const auto metric =
      nlohmann::json::parse(eval.out).at("result").at("rows").at(0).at("metrics").at(0);
  EXPECT_EQ(metric.at("name"), "energy_pixels");
  EXPECT_EQ(metric.at("n_samples"), 32);

  EXPECT_CONTAINS(p.run({"show", "runs/tiny"}).out, "trunk.blocks.0.attn.qkv.weight");
  EXPECT_CONTAINS(p.run({"config", "show", "runs/tiny"}).out, "compute_dtype = \"float32\"");
}

TEST_F(ProgramTest, InspectsAttention) {
  const auto train = [&](const std::string& kind, const std::string& run) {
    return p.run({"train", "tiny.toml", "--run", run, "--set", "train.images=64", "--set",
                  "generator.trunk.attention.kind=" + kind});
  };
  ASSERT_EQ(p.run({"train", "tiny.toml", "--set", "train.images=64"}).exit, 0);
  const Finished dense = p.run({"inspect", "attention", "runs/tiny", "-o", "a.png"});
  EXPECT_EQ(dense.exit, 2);
  EXPECT_CONTAINS(dense.err, "expected attention of kind sparse or multi_token, got dense");
  const Finished no_experts = p.run({"inspect", "routing", "runs/tiny", "-o", "a.png"});
  EXPECT_EQ(no_experts.exit, 2);
  EXPECT_CONTAINS(no_experts.err, "expected an mlp of kind moe, got dense");

  const Finished sparse_train = p.run(
      {"train", "tiny.toml", "--run", "runs/sparse", "--set", "train.images=64", "--set",
       "generator.trunk.attention.kind=sparse", "--set", "generator.trunk.attention.block=[1, 1]",
       "--set", "generator.trunk.attention.num_selected=2"});
  ASSERT_EQ(sparse_train.exit, 0) << sparse_train.err;
  const Finished sparse = p.run({"inspect", "attention", "runs/sparse", "--image", "3", "--query",
                                 "0,1", "-o", "a.png", "--json"});
  ASSERT_EQ(sparse.exit, 0) << sparse.err;
  const auto layers = nlohmann::json::parse(sparse.out).at("result").at("layers");
  ASSERT_FALSE(layers.empty());
  for (const auto& head : layers.at(0).at("blocks")) EXPECT_EQ(head.size(), 2u);
  EXPECT_GT(decode_image(read_file(p.folder / "a.png"), "a").width, 100);
  EXPECT_EQ(p.run({"inspect", "attention", "runs/sparse", "--image", "100000"}).exit, 2);
  EXPECT_EQ(p.run({"inspect", "attention", "runs/sparse", "--query", "9,9"}).exit, 2);
  EXPECT_EQ(p.run({"inspect", "attention", "runs/sparse", "--time", "7"}).exit, 2);
  EXPECT_EQ(p.run({"inspect", "attention", "runs/sparse", "-o", "a.jpg"}).exit, 2);

  const Finished trained = train("multi_token", "runs/multi");
  ASSERT_EQ(trained.exit, 0) << trained.err;
  const Finished multi = p.run({"inspect", "attention", "runs/multi", "-o", "k.png"});
  ASSERT_EQ(multi.exit, 0) << multi.err;
  EXPECT_CONTAINS(multi.out, "post, largest weight");
  EXPECT_EQ(decode_image(read_file(p.folder / "k.png"), "k").channels, 3);
}

TEST_F(ProgramTest, InspectsRouting) {
  const auto inspect = [&](const std::string& run, const std::string& router) {
    const Finished trained = p.run(
        {"train", "tiny.toml", "--run", run, "--set", "train.images=64", "--set",
         "generator.trunk.mlp.kind=moe", "--set", "generator.trunk.mlp.num_experts=2", "--set",
         "generator.trunk.mlp.num_chosen=1", "--set", "generator.trunk.mlp.router.kind=" + router});
    EXPECT_EQ(trained.exit, 0) << trained.err;
    const Finished r = p.run({"inspect", "routing", run, "--image", "3,7", "--time", "0.2,0.8",
                              "-o", run + ".png", "--json"});
    EXPECT_EQ(r.exit, 0) << r.err;
    return nlohmann::json::parse(r.out).at("result").at("rows");
  };
  // A patch that takes one of two experts is lit in one of the two cells.
  const auto tokens = inspect("runs/tokens", "token_choice");
  const std::string png = read_file(p.folder / "runs/tokens.png");
  EXPECT_EQ(nlohmann::json::parse(read_provenance(png, "tokens")).at("rows"), tokens);
  const Image image = decode_image(png, "tokens");
  constexpr int64_t kCell = 112, kGap = 8;
  ASSERT_EQ(image.width, 3 * kCell + 2 * kGap);
  for (const int64_t y : {kCell / 4, kCell * 3 / 4}) {
    for (const int64_t x : {kCell / 4, kCell * 3 / 4}) {
      const auto green = [&](int64_t cell) {
        return image.pixels[(y * image.width + cell * (kCell + kGap) + x) * 3 + 1];
      };
      EXPECT_NE(green(1), green(2));
    }
  }
  // Experts of capacity 2 of 2 take every patch: the heat is greatest to the last corner.
  const auto experts = inspect("runs/experts", "expert_choice");
  ASSERT_EQ(experts.size(), 2u);
  EXPECT_EQ(experts.at(1).at("share"), (std::vector<double>{0.5, 0.5}));
  EXPECT_EQ(experts.at(1).at("unrouted"), 0.0);
  const Image heat = decode_image(read_file(p.folder / "runs/experts.png"), "experts");
  EXPECT_EQ(std::vector<uint8_t>(heat.pixels.end() - 3, heat.pixels.end()),
            (std::vector<uint8_t>{255, 255, 153}));

  const auto refused = [&](const std::string& flag, const std::string& value, int exit,
                           const std::string& message) {
    const Finished r = p.run({"inspect", "routing", "runs/tokens", flag, value});
    EXPECT_EQ(r.exit, exit);
    EXPECT_CONTAINS(r.err, message);
  };
  refused("--image", "3,64", 2, "--image: expected [0, 64), got 64");
  refused("--time", "0.5,7", 2, "--time: expected [0.006, 0.994], got 7");
  refused("-o", "none/a.png", 7, "none/");
}

TEST_F(ProgramTest, TwoRunsOfASeedAgreeAndAnotherSeedDiffers) {
  const std::vector<std::string> recipe = {"train", "tiny.toml", "--set", "train.images=160",
                                           "--run"};
  const auto train = [&](const std::string& run, const std::string& set) {
    std::vector<std::string> arguments = recipe;
    arguments.insert(arguments.end(), {run, "--set", set});
    EXPECT_EQ(p.run(arguments).exit, 0);
    return hashes(p.checkpoints(run).back());
  };
  const auto a = train("runs/a", "train.seed=0");
  EXPECT_EQ(a, train("runs/b", "train.seed=0"));
  EXPECT_EQ(a, train("runs/c", "data.threads=3"));
  EXPECT_NE(a, train("runs/d", "train.seed=1"));
}

TEST_F(ProgramTest, AutoencoderLatentsFeedAGenerator) {
  p.write_tokenizer_recipe("ae.toml", 800);
  p.write_recipe("latent.toml", "[generator.sampler]\nsteps = 2\n");
  const std::vector<std::string> generator = {"train", "latent.toml",
                                              "--set", "generator.tokenizer=runs/ae",
                                              "--set", "generator.path={kind=\"ot_fm\"}"};
  // Not before the tokenizer is there.
  EXPECT_EQ(p.run(generator).exit, 2);
  ASSERT_EQ(p.run({"train", "ae.toml"}).exit, 0);
  const Finished psnr = p.run({"eval", "runs/ae", "--metrics", "psnr_of_mean", "--json"});
  ASSERT_EQ(psnr.exit, 0) << psnr.err;
  EXPECT_GT(
      nlohmann::json::parse(psnr.out).at("result").at("metrics").at(0).at("value").get<double>(),
      10.0);
  std::vector<std::string> dry = generator;
  dry.emplace_back("-n");
  EXPECT_CONTAINS(p.run(dry).out, "would write runs/ae/latents/");
  EXPECT_FALSE(fs::exists(p.folder / "runs/ae/latents"));
  Finished r = p.run(generator);
  ASSERT_EQ(r.exit, 0) << r.err;
  EXPECT_FALSE(contains(p.run(dry).out, "would write runs/ae"));  // they are there
  EXPECT_TRUE(fs::exists(p.folder / "runs/latent/tokenizer/ema-main.safetensors"));
  EXPECT_EQ(
      std::distance(fs::directory_iterator(p.folder / "runs/ae/latents"), fs::directory_iterator{}),
      1);
  // The run keeps its own copy of the tokenizer.
  fs::remove_all(p.folder / "runs/ae");
  ASSERT_EQ(p.run({"sample", "runs/latent", "-o", "latent.png"}).exit, 0);
  EXPECT_EQ(decode_image(read_file(p.folder / "latent.png"), "grid").channels, 1);
  EXPECT_EQ(p.run({"regenerate", "latent.png"}).exit, 0);
  // Not with another decoder.
  const fs::path decoder = p.folder / "runs/latent/tokenizer/ema-main.safetensors";
  std::string weights = read_file(decoder);
  weights[weights.size() - 2] ^= 1;
  p.write("runs/latent/tokenizer/ema-main.safetensors", weights);
  const Finished other = p.run({"regenerate", "latent.png"});
  EXPECT_EQ(other.exit, 4);
  EXPECT_CONTAINS(other.err, "expected the tokenizer of SHA-256");
}

TEST_F(ProgramTest, ListsKeysAndData) {
  EXPECT_CONTAINS(p.run({"train", "tiny.toml", "--dry-run"}).out, "parameters");
  EXPECT_CONTAINS(p.run({"config", "keys", "objective"}).out, "generator.objective.group_size");
  EXPECT_CONTAINS(p.run({"data", "list"}).out, "fashion");
  EXPECT_CONTAINS(p.run({"version"}).out, "torch");
}

TEST_F(ProgramTest, ConfigDiffNamesWhatDiffers) {
  p.write_recipe("other.toml", "keep_last = 1\n");  // falls into [log]: unknown there
  EXPECT_EQ(p.run({"config", "check", "other.toml"}).exit, 2);
  p.write("child.toml", "extends = \"tiny.toml\"\n[train]\nseed = 7\n");
  const Finished r = p.run({"config", "diff", "tiny.toml", "child.toml"});
  EXPECT_EQ(r.exit, 0);
  EXPECT_CONTAINS(r.out, "train.seed");
  EXPECT_FALSE(contains(r.out, "train.batch"));
}

TEST_F(ProgramTest, FiftyKillsLoseAtMostOneInterval) {
  constexpr int kKills = 50;
  constexpr int kInterval = 2;  // steps
  const std::vector<std::string> command = {
      "train", "tiny.toml",           "--set", "train.images=10M",
      "--set", "checkpoint.every=16", "--set", "checkpoint.keep_last=2"};
  const auto newest = [&] {
    const auto all = p.checkpoints("runs/tiny");
    return all.empty() ? 0 : std::stoi(all.back().filename().string().substr(5));
  };
  // Before the first checkpoint there is nothing to lose: start from one.
  pid_t child = p.start(command);
  while (newest() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  for (int i = 0; i < kKills; ++i) {
    // At any moment: while training, saving or cleaning.
    const int before = newest();
    while (newest() < before + kInterval)
      std::this_thread::sleep_for(std::chrono::microseconds(300));
    std::this_thread::sleep_for(std::chrono::microseconds(i * 397 % 9000));
    kill(child, SIGKILL);
    EXPECT_EQ(p.wait(child).exit, 128 + SIGKILL);
    const int saved = newest();
    EXPECT_GE(saved, before + kInterval) << "kill " << i;
    child = p.start(command);
    // It goes on from the newest checkpoint: the next one is one interval on.
    while (newest() <= saved) std::this_thread::sleep_for(std::chrono::microseconds(300));
    const auto all = p.checkpoints("runs/tiny");
    for (const auto& folder : all) {
      EXPECT_EQ((std::stoi(folder.filename().string().substr(5)) - saved) % kInterval, 0)
          << "kill " << i;
    }
  }
  kill(child, SIGTERM);
  EXPECT_EQ(p.wait(child).exit, 143);
  for (const auto& entry : fs::directory_iterator(p.folder / "runs/tiny/checkpoints")) {
    EXPECT_FALSE(entry.path().filename().string().starts_with(".tmp")) << entry.path();
  }
}

}  // namespace
}  // namespace sigma
