// sigma/base/config.h: reading, bounds, hints, writing, the identity hash.
#include "sigma/base/config.h"

#include <cmath>
#include <map>

#include "tests/base/example_config.h"

namespace sigma {
namespace {

using namespace example;

TEST(Bounds, OpenAndClosedEnds) {
  EXPECT_TRUE(in(0, 1).contains(0) && in(0, 1).contains(1) && !in(0, 1).contains(1.01));
  EXPECT_TRUE(!above(0, 1).contains(0) && above(0, 1).contains(1));
  EXPECT_TRUE(below(0, 1).contains(0) && !below(0, 1).contains(1));
  EXPECT_TRUE(at_least(2).contains(1e300) && !at_least(2).contains(1.9));
  EXPECT_FALSE(in(0, 1).contains(std::nan("")));
  EXPECT_EQ(below(0, 1).text(), "[0, 1)");
  EXPECT_EQ(above(0, 1).text(), "(0, 1]");
  EXPECT_EQ(in(0, 1).text(), "[0, 1]");
}

TEST(Read, FillsWhatIsThereAndKeepsDefaults) {
  const RunConfig c = read(R"(
name = "other"
fast = true
layers = [2, 6]
mid_eta = [1.4, 2]
optimizer = { kind = "sgd", momentum = 0.5 }
[data]
threads = 8
)");
  EXPECT_EQ(c.name, "other");
  EXPECT_TRUE(c.fast);
  EXPECT_EQ(c.images, 1000);
  EXPECT_EQ(std::get<std::vector<int64_t>>(c.layers), (std::vector<int64_t>{2, 6}));
  EXPECT_EQ(c.mid_eta, (std::vector<double>{1.4, 2}));
  EXPECT_EQ(c.optimizer.kind, "sgd");
  EXPECT_EQ(c.optimizer.momentum, 0.5);
  EXPECT_EQ(c.optimizer.lr, 1e-3);
  EXPECT_EQ(c.data.threads, 8);
}

TEST(Read, NumbersWithSuffixes) {
  EXPECT_EQ(read("images = \"32Ki\"").images, 32768);
  EXPECT_EQ(read("images = \"10k\"").images, 10000);
  EXPECT_EQ(read("images = 291_840").images, 291840);
  EXPECT_EQ(parse_count("32Ki"), 32768);
  EXPECT_EQ(parse_count("2Mi"), 2 << 20);
  EXPECT_EQ(parse_count("3M"), 3'000'000);
  EXPECT_EQ(parse_count("1Gi"), 1ll << 30);
  EXPECT_EQ(parse_count("7"), 7);
  for (const char* bad :
       {"", "Ki", "3x", "1.5k", "99999999999999999999", "9223372036854775807Ki"}) {
    EXPECT_THROW(parse_count(bad), Error) << bad;
  }
}

TEST(Read, BoundsNameKeyValueBoundsAndSource) {
  expect_contains(error_of([] { read("optimizer = { lr = 2.0 }"); }),
                  {"optimizer.lr", "2", "(0, 1]", "test.toml"});
  expect_contains(error_of([] { read("optimizer = { lr = 0.0 }"); }), {"optimizer.lr", "(0, 1]"});
  expect_contains(error_of([] { read("images = 0"); }), {"images", "0", "[1, "});
  expect_contains(error_of([] { read("mid_eta = [1.0, -3.0]"); }), {"mid_eta", "-3", "(0, 1000]"});
  expect_contains(error_of([] { read("dims = [1, 101]"); }), {"dims", "101", "[1, 100]"});
  expect_contains(error_of([] { read("optimizer = { kind = \"adam\" }"); }),
                  {"optimizer.kind", "adam", "adamw", "sgd", "did you mean"});
}

TEST(Read, WrongTypesAreErrors) {
  for (const char* bad :
       {"images = \"many\"", "images = 1.5", "images = true", "fast = 1", "fast = \"true\"",
        "name = 3", "optimizer = 3", "optimizer = { lr = \"x\" }", "dims = 3", "dims = [1.5]",
        "optimizer = { lr = nan }", "optimizer = { lr = inf }"}) {
    EXPECT_THROW(read(bad), Error) << bad;
  }
}

TEST(Read, UnknownKeysAreNamedWithTheNearest) {
  expect_contains(error_of([] { read("optimizer = { lrr = 0.1 }"); }),
                  {"optimizer.lrr", "did you mean", "optimizer.lr"});
  expect_contains(error_of([] { read("imagse = 3"); }), {"imagse", "images"});  // a transposition
  expect_contains(error_of([] { read("zzzzzzzz = 3"); }), {"zzzzzzzz"});
  // The field of another kind is unknown here.
  expect_contains(error_of([] { read("optimizer = { kind = \"adamw\", momentum = 0.5 }"); }),
                  {"optimizer.momentum"});
}

TEST(DidYouMean, DistanceTwoAtMost) {
  EXPECT_EQ(did_you_mean("thraeds", {"kind", "threads"}), "threads");
  EXPECT_EQ(did_you_mean("depth", {"hidden_size", "num_heads"}), "");
  EXPECT_EQ(did_you_mean("bath", {"path", "batch"}).size() > 0, true);
}

TEST(Write, ReadsBackAsItself) {
  RunConfig c =
      read("images = 7\nlayers = \"every 4th\"\noptimizer = { kind = \"sgd\", momentum = 0.25 }");
  const Json tree = write_config(visit_of(c));
  RunConfig again;
  read_config(visit_of(again), parse_toml(to_toml(tree), "t"), "t");
  EXPECT_EQ(write_config(visit_of(again)), tree);
  EXPECT_EQ(tree["optimizer"]["momentum"], 0.25);
  c.optimizer.kind = "adamw";
  EXPECT_FALSE(write_config(visit_of(c))["optimizer"].contains("momentum"));
  const Role runtime = Role::kRuntime;
  EXPECT_EQ(write_config(visit_of(c), &runtime), Json::parse(R"({"data":{"threads":4}})"));
}

TEST(Hash, CoversIdentityKeysOnly) {
  RunConfig c;
  const std::string hash = config_hash(visit_of(c));
  EXPECT_EQ(hash.size(), 64u);
  c.data.threads = 17;
  EXPECT_EQ(config_hash(visit_of(c)), hash);
  c.optimizer.momentum = 0.1;  // a field of another kind
  EXPECT_EQ(config_hash(visit_of(c)), hash);
  c.data.kind = "idx";
  EXPECT_NE(config_hash(visit_of(c)), hash);
  c.data.kind = "fashion";
  c.optimizer.lr = 0.5;
  EXPECT_NE(config_hash(visit_of(c)), hash);
}

TEST(Keys, EveryOptionIsListed) {
  RunConfig c;
  std::map<std::string, KeyInfo> keys;
  for (const auto& key : list_keys(visit_of(c))) keys[key.key] = key;
  EXPECT_EQ(keys.size(), 11u);
  EXPECT_EQ(keys.at("optimizer.lr").bounds, "(0, 1]");
  EXPECT_EQ(keys.at("data.threads").role, Role::kRuntime);
  EXPECT_EQ(keys.at("optimizer.lr").role, Role::kIdentity);
  expect_contains(keys.at("optimizer.momentum").condition, {"sgd"});
  expect_contains(keys.at("optimizer.kind").bounds, {"adamw", "sgd"});
}

TEST(Flatten, Leaves) {
  const auto leaves = flatten(Json::parse(R"({"a":{"b":1,"c":{"d":"x"}},"e":[1,2]})"));
  std::map<std::string, std::string> map(leaves.begin(), leaves.end());
  EXPECT_EQ(map.size(), 3u);
  EXPECT_EQ(map.at("a.b"), "1");
  EXPECT_TRUE(map.contains("a.c.d") && map.contains("e"));
}

}  // namespace
}  // namespace sigma
