// A configuration with every sort of field, and how the tests read it.
#pragma once

#include <gtest/gtest.h>

#include "sigma/base/config.h"
#include "sigma/base/error.h"

// A namespace of its own: the library has structs of these names.
namespace sigma::example {

struct OptimizerConfig {
  std::string kind = "adamw";
  double lr = 1e-3;
  double momentum = 0.9;
  void visit(ConfigVisitor& v) {
    v.choice("kind", kind, {"adamw", "sgd"}, "which");
    v.field("lr", lr, above(0, 1), "step size");
    if (v.when(kind, "sgd")) v.field("momentum", momentum, below(0, 1), "of sgd");
  }
};

struct DataConfig {
  std::string kind = "fashion";
  int64_t threads = 4;
  void visit(ConfigVisitor& v) {
    v.field("kind", kind, "data set");
    v.field("threads", threads, in(0, 64), "of the loader", Role::kRuntime);
  }
};

struct RunConfig {
  std::string name = "run";
  int64_t images = 1000;
  bool fast = false;
  TextOrList layers = "all";
  std::vector<double> mid_eta;
  std::vector<int64_t> dims;
  OptimizerConfig optimizer;
  DataConfig data;
  void visit(ConfigVisitor& v) {
    v.field("name", name, "name");
    v.field("images", images, at_least(1), "how long");
    v.field("fast", fast, "or not");
    v.field("layers", layers, "which blocks");
    v.field("mid_eta", mid_eta, above(0, 1000), "times");
    v.field("dims", dims, in(1, 100), "sizes");
    v.table("optimizer", optimizer, "optimizer");
    v.table("data", data, "data");
  }
};

inline RunConfig read(const std::string& toml) {
  RunConfig config;
  read_config(visit_of(config), parse_toml(toml, "test.toml"), "test.toml");
  return config;
}

/// The error of `body`, as "message | hint".
template <typename F>
std::string error_of(F body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    return std::string(error.what()) + " | " + error.hint();
  }
  ADD_FAILURE() << "no error";
  return "";
}

inline void expect_contains(const std::string& text, const std::vector<std::string>& parts) {
  for (const auto& part : parts)
    EXPECT_NE(text.find(part), std::string::npos) << part << " is not in: " << text;
}

}  // namespace sigma::example
