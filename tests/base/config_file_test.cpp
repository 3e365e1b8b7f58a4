// The text side of configurations: --set, merging, recipes that extend others, the environment,
// TOML.
#include <filesystem>
#include <fstream>

#include "tests/base/example_config.h"

namespace sigma {
namespace {

using namespace example;

TEST(Set, ValuesAreTomlElseText) {
  Json tree = parse_toml("images = 5", "t");
  set_key(tree, "images=7");
  set_key(tree, "optimizer.lr=2e-3");
  set_key(tree, "name=plain text");
  set_key(tree, "layers=[1,2]");
  set_key(tree, "fast=true");
  set_key(tree, "data.kind=\"idx\"");
  RunConfig c;
  read_config(visit_of(c), tree, "--set");
  EXPECT_EQ(c.images, 7);
  EXPECT_EQ(c.optimizer.lr, 2e-3);
  EXPECT_EQ(c.name, "plain text");
  EXPECT_TRUE(c.fast);
  EXPECT_EQ(c.data.kind, "idx");
  set_key(tree, "images=32Ki");
  read_config(visit_of(c), tree, "--set");
  EXPECT_EQ(c.images, 32768);
  EXPECT_THROW(set_key(tree, "images"), Error);
  EXPECT_THROW(set_key(tree, "=3"), Error);
}

TEST(Merge, AKindThatChangesStartsAnew) {
  Json base = parse_toml("a = 1\noptimizer = { kind = \"sgd\", momentum = 0.5, lr = 0.1 }", "t");
  merge_config(base, parse_toml("optimizer = { kind = \"adamw\" }", "t"));
  EXPECT_EQ(base["optimizer"], Json::parse(R"({"kind":"adamw"})"));
  EXPECT_EQ(base["a"], 1);
  merge_config(base, parse_toml("optimizer = { kind = \"adamw\", lr = 0.2 }", "t"));
  merge_config(base, parse_toml("optimizer = { lr = 0.3 }", "t"));  // the same kind: merged
  EXPECT_EQ(base["optimizer"], Json::parse(R"({"kind":"adamw","lr":0.3})"));
}

TEST(Recipe, ExtendsIsRelativeAndMergedUnderneath) {
  const auto dir = std::filesystem::temp_directory_path() / "sigma_config_test";
  std::filesystem::create_directories(dir / "sub");
  std::ofstream(dir / "base.toml")
      << "images = 5\nname = \"base\"\n[optimizer]\nkind = \"sgd\"\nmomentum = 0.1\n";
  std::ofstream(dir / "sub" / "child.toml")
      << "extends = \"../base.toml\"\nname = \"child\"\n[optimizer]\nlr = 0.5\n";
  std::ofstream(dir / "loop.toml") << "extends = \"loop.toml\"\n";
  const Json tree = load_recipe(dir / "sub" / "child.toml");
  RunConfig c;
  read_config(visit_of(c), tree, "child.toml");
  EXPECT_EQ(c.images, 5);
  EXPECT_EQ(c.name, "child");
  EXPECT_EQ(c.optimizer.kind, "sgd");
  EXPECT_EQ(c.optimizer.momentum, 0.1);
  EXPECT_EQ(c.optimizer.lr, 0.5);
  EXPECT_THROW(load_recipe(dir / "loop.toml"), Error);
  expect_contains(error_of([&] { load_recipe(dir / "missing.toml"); }), {"missing.toml"});
  std::filesystem::remove_all(dir);
}

TEST(Environment, OnlyRuntimeKeys) {
  RunConfig c;
  const auto merge = [&](std::vector<std::string> variables) {
    std::vector<char*> pointers;
    for (auto& variable : variables) pointers.push_back(variable.data());
    pointers.push_back(nullptr);
    Json tree = Json::object();
    merge_environment(tree, visit_of(c), pointers.data());
    return tree;
  };
  const Json tree = merge({"PATH=/bin", "SIGMA_ASSETS=/x", "SIGMA_DATA__THREADS=2"});
  EXPECT_EQ(tree, Json::parse(R"({"data":{"threads":2}})"));
  expect_contains(error_of([&] { merge({"SIGMA_OPTIMIZER__LR=0.5"}); }), {"SIGMA_OPTIMIZER__LR"});
  expect_contains(error_of([&] { merge({"SIGMA_DATA__THREADZ=0.5"}); }), {"SIGMA_DATA__THREADZ"});
}

TEST(Toml, RoundTrip) {
  const std::string text = R"(
name = "quotes \" back \\ slash, newline \n and ünïcode"
images = -9007199254740993
lr = 1e-10
third = 0.3333333333333333
whole = 2.0
fast = false
list = [1, 2, 3]
mixed = ["a", "b"]
empty = []
[optimizer]
kind = "sgd"
[optimizer.deep]
x = 1
[data]
"odd key" = 3
)";
  const Json tree = parse_toml(text, "t");
  const Json again = parse_toml(to_toml(tree), "again");
  EXPECT_EQ(tree, again) << to_toml(tree);
  EXPECT_TRUE(again["whole"].is_number_float());
  EXPECT_EQ(again["third"].get<double>(), 0.3333333333333333);
  EXPECT_EQ(to_toml(tree), to_toml(again));
}

TEST(Toml, ErrorsNameSourceAndPlace) {
  expect_contains(error_of([] { parse_toml("a = 1\nb = = 2\n", "bad.toml"); }), {"bad.toml:2:"});
  EXPECT_THROW(parse_toml("a = 1\na = 2", "t"), Error);
}

}  // namespace
}  // namespace sigma
